-- A delivery that comes after the removal of its row does not bring it back. A new table alone, so that nobody waits.

-- step: tables
-- What has been removed at which time of its system's, so that a delivery that comes late does not bring it back. The
-- removal may have come before anything else of the row, and of the organization.
create table removed_rows (
    organization_id uuid not null,
    record_type text not null,
    id uuid not null,
    updated_at timestamptz not null,
    removed_at timestamptz not null default now(),
    constraint removed_rows_pk primary key (organization_id, record_type, id),
    constraint removed_rows_type_known check (record_type in ('contact', 'case')),
    constraint removed_rows_times_in_range check (
        updated_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    )
);

alter table removed_rows enable row level security, force row level security;
create policy own_organization on removed_rows
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
create policy administration on removed_rows to current_user
    using (current_setting('cases.every_organization', true) = 'on');

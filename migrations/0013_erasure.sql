-- Who was erased does not come back by the next feed. New tables alone, so that nobody waits.

-- step: tables
-- What a person's external id is hashed with once their data is erased: 32 random bytes for each organization that has
-- erased anybody.
create table erasure_keys (
    organization_id uuid not null,
    key bytea not null,
    constraint erasure_keys_pk primary key (organization_id),
    constraint erasure_keys_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint erasure_keys_length check (octet_length(key) = 32)
);

-- Visitors whose data was erased, by the HMAC-SHA256 of their external id, so that no feed brings them back.
create table erased_visitors (
    organization_id uuid not null,
    external_id_hash bytea not null,
    erased_at timestamptz not null,
    constraint erased_visitors_pk primary key (organization_id, external_id_hash),
    constraint erased_visitors_key_fk foreign key (organization_id)
        references erasure_keys (organization_id),
    constraint erased_visitors_hash_is_sha256 check (octet_length(external_id_hash) = 32)
);

alter table erasure_keys enable row level security, force row level security;
create policy own_organization on erasure_keys
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
create policy administration on erasure_keys to current_user
    using (current_setting('cases.every_organization', true) = 'on');
alter table erased_visitors enable row level security, force row level security;
create policy own_organization on erased_visitors
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
create policy administration on erased_visitors to current_user
    using (current_setting('cases.every_organization', true) = 'on');

-- An organization's writes to a case. A transaction locks the case, reads it again (get_case_of_organization in
-- organization_cases.sql), and checks the change's references; then it writes, and reads the result.

-- name: lock_case
-- Another transaction that changes the case waits here, and then reads the result of this one.
select c.id
from cases c
where c.organization_id = :organization_id and c.id = :case_id::uuid
for update;

-- name: check_case
-- The time of the transaction, the other case that has the number, and whether each referenced row exists.
select
    now() as now,
    (
        select c.id
        from cases c
        where c.organization_id = :organization_id
            and c.case_number = :case_number
            and c.id is distinct from :case_id::uuid
    ) as holder_id,
    exists (
        select from contacts x where x.organization_id = :organization_id and x.id = :contact_id::uuid
    ) as has_contact,
    exists (
        select from users o where o.organization_id = :organization_id and o.id = :owner_id::uuid
    ) as has_owner,
    exists (
        select from users a where a.organization_id = :organization_id and a.id = :created_by_user_id::uuid
    ) as has_author,
    exists (
        select from users e where e.organization_id = :organization_id and e.id = :updated_by_user_id::uuid
    ) as has_editor,
    exists (
        select
        from case_funnel_stages s
        where s.organization_id = :organization_id and s.id = :case_funnel_stage_id::uuid
    ) as has_stage;

-- name: add_case
-- No row: a case with this id already exists.
insert into cases (
    organization_id, id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, created_at, updated_at, created_by_user_id,
    updated_by_user_id, case_funnel_stage_id
)
values (
    :organization_id, :case_id, :case_number, :contact_id, :owner_id, :subject, :description, :status, :priority,
    :latest_messaging_channel, :channel_priority, case when :status = 'Closed' then :now::timestamptz end,
    :now::timestamptz, :now::timestamptz, :created_by_user_id, :updated_by_user_id, :case_funnel_stage_id
)
on conflict (organization_id, id) do nothing
returning id;

-- name: change_case!
-- The time grows with every change, whatever the clock shows and whatever time was loaded. It is added to in UTC,
-- because Citus takes nothing in an update that depends on the session's time zone.
update cases
set case_number = :case_number,
    contact_id = :contact_id,
    owner_id = :owner_id,
    subject = :subject,
    description = :description,
    status = :status,
    priority = :priority,
    latest_messaging_channel = :latest_messaging_channel,
    channel_priority = :channel_priority,
    closed_at = case when :status = 'Closed' then coalesce(closed_at, :now::timestamptz) end,
    updated_at = least(
        greatest(:now::timestamptz, (updated_at at time zone 'UTC' + interval '1 millisecond') at time zone 'UTC'),
        '9999-12-31 23:59:59.999999+00'
    ),
    updated_by_user_id = :updated_by_user_id,
    case_funnel_stage_id = :case_funnel_stage_id
where organization_id = :organization_id and id = :case_id::uuid;

-- name: remove_case
-- No row: the organization has no such case. What a feed delivers later of it does not bring it back, nor does a
-- message of an activity that went with it stop the feed.
with removed as (
    delete from cases
    where organization_id = :organization_id and id = :case_id::uuid
    returning organization_id, id
),
remembered as (
    insert into removed_rows (organization_id, record_type, id, updated_at)
    select :organization_id, 'case', removed.id, now()
    from removed
    where removed.organization_id = :organization_id
    on conflict (organization_id, record_type, id) do update
    set updated_at = greatest(removed_rows.updated_at, excluded.updated_at)
),
remembered_contents as (
    insert into removed_rows (organization_id, record_type, id, updated_at)
    select :organization_id, 'activity', a.id, now()
    from activities a
    where a.organization_id = :organization_id and a.case_id = :case_id::uuid
    on conflict (organization_id, record_type, id) do nothing
)
select removed.id from removed where removed.organization_id = :organization_id;

-- One case as its organization sees it and writes it. A transaction that changes one locks it, reads it anew with what
-- it refers to, and looks at what the change refers to; then it writes, and reads what it has written.

-- name: get_case_of_organization
-- No row: the organization has no such case.
select
    c.id,
    c.organization_id,
    c.case_number,
    c.contact_id,
    contact.organization_id as "contact.organization_id",
    contact.id as "contact.id",
    contact.first_name as "contact.first_name",
    contact.last_name as "contact.last_name",
    contact.full_name as "contact.full_name",
    contact.email as "contact.email",
    contact.phone as "contact.phone",
    contact.created_at as "contact.created_at",
    contact.updated_at as "contact.updated_at",
    c.owner_id,
    owner.organization_id as "owner.organization_id",
    owner.id as "owner.id",
    owner.email as "owner.email",
    owner.first_name as "owner.first_name",
    owner.last_name as "owner.last_name",
    owner.full_name as "owner.full_name",
    owner.alias as "owner.alias",
    owner.title as "owner.title",
    owner.avatar_url as "owner.avatar_url",
    c.subject,
    c.description,
    c.status,
    c.priority,
    c.latest_messaging_channel,
    c.is_closed,
    c.closed_at,
    c.is_waiting,
    c.unread_message_count,
    c.created_at,
    c.updated_at,
    c.created_by_user_id,
    author.organization_id as "created_by_user.organization_id",
    author.id as "created_by_user.id",
    author.email as "created_by_user.email",
    author.first_name as "created_by_user.first_name",
    author.last_name as "created_by_user.last_name",
    author.full_name as "created_by_user.full_name",
    author.alias as "created_by_user.alias",
    author.title as "created_by_user.title",
    author.avatar_url as "created_by_user.avatar_url",
    c.updated_by_user_id,
    editor.organization_id as "updated_by_user.organization_id",
    editor.id as "updated_by_user.id",
    editor.email as "updated_by_user.email",
    editor.first_name as "updated_by_user.first_name",
    editor.last_name as "updated_by_user.last_name",
    editor.full_name as "updated_by_user.full_name",
    editor.alias as "updated_by_user.alias",
    editor.title as "updated_by_user.title",
    editor.avatar_url as "updated_by_user.avatar_url",
    c.case_funnel_stage_id,
    stage.organization_id as "case_funnel_stage.organization_id",
    stage.id as "case_funnel_stage.id",
    stage.name as "case_funnel_stage.name",
    stage.position as "case_funnel_stage.position",
    c.channel_priority,
    c.visitor_unread_message_count
from cases c
left join contacts contact on contact.organization_id = :organization_id and contact.id = c.contact_id
left join users owner on owner.organization_id = :organization_id and owner.id = c.owner_id
left join users author on author.organization_id = :organization_id and author.id = c.created_by_user_id
left join users editor on editor.organization_id = :organization_id and editor.id = c.updated_by_user_id
left join case_funnel_stages stage on stage.organization_id = :organization_id and stage.id = c.case_funnel_stage_id
where c.organization_id = :organization_id and c.id = :case_id::uuid;

-- name: lock_case
-- Another one that changes the case waits here, and then reads what this one has written.
select c.id
from cases c
where c.organization_id = :organization_id and c.id = :case_id::uuid
for update;

-- name: check_case
-- The time of the transaction, the other case that has the number, and whether there is what is referred to.
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
-- No row: a case with this id is there already.
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
-- The time grows with every change, whatever the clock says and whatever time was loaded. It is added to in UTC, because
-- Citus takes nothing in an update that depends on the session's time zone.
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
        greatest(:now::timestamptz, (updated_at at time zone 'UTC' + interval '1 microsecond') at time zone 'UTC'),
        '9999-12-31 23:59:59.999999+00'
    ),
    updated_by_user_id = :updated_by_user_id,
    case_funnel_stage_id = :case_funnel_stage_id
where organization_id = :organization_id and id = :case_id::uuid;

-- name: remove_case
-- No row: the organization has no such case.
delete from cases
where organization_id = :organization_id and id = :case_id::uuid
returning id;

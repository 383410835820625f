-- Exports everything about one visitor as lines of the load format, and erases it.
--
-- The statements named export_ have the fields of a line as their columns, and a fixed order of rows, so the same data
-- gives the same bytes. An activity opened by a note is left out with its notes: a line cannot say that it is hidden.

-- name: begin_export#
set transaction isolation level repeatable read, read only;

-- name: begin_erasure#
-- So that after waiting for a lock, the commits of others are visible.
set transaction isolation level read committed;

-- name: find_visitor
select v.id from visitors v where v.organization_id = :organization_id and v.external_id = :external_id;

-- name: count_of_visitor
select
    (select count(*) from contacts x where x.organization_id = :organization_id and x.visitor_id = :visitor_id) as contacts,
    (
        select count(*)
        from contacts x
        join cases c on c.organization_id = :organization_id and c.contact_id = x.id
        where x.organization_id = :organization_id and x.visitor_id = :visitor_id
    ) as cases;

-- name: export_visitor
select 'visitor' as type, v.id, v.organization_id, v.external_id
from visitors v
where v.organization_id = :organization_id and v.id = :visitor_id;

-- name: export_contacts
select
    'contact' as type,
    x.id,
    x.organization_id,
    x.visitor_id,
    x.first_name,
    x.last_name,
    x.email,
    x.phone,
    x.created_at,
    x.updated_at
from contacts x
where x.organization_id = :organization_id and x.visitor_id = :visitor_id
order by x.created_at, x.id;

-- name: export_cases
select
    'case' as type,
    c.id,
    c.organization_id,
    c.case_number,
    c.contact_id,
    c.owner_id,
    c.subject,
    c.description,
    c.status,
    c.priority,
    c.latest_messaging_channel,
    c.channel_priority,
    c.closed_at,
    c.is_waiting,
    c.unread_message_count,
    c.created_at,
    c.updated_at,
    c.created_by_user_id,
    c.updated_by_user_id,
    c.case_funnel_stage_id,
    c.visitor_unread_message_count
from contacts x
join cases c on c.organization_id = :organization_id and c.contact_id = x.id
where x.organization_id = :organization_id and x.visitor_id = :visitor_id
order by c.created_at, c.id;

-- name: export_activities
select
    'activity' as type,
    a.id,
    a.organization_id,
    a.case_id,
    a.channel,
    a.created_at,
    a.updated_at,
    a.ended_at
from contacts x
join cases c on c.organization_id = :organization_id and c.contact_id = x.id
join activities a on a.organization_id = :organization_id and a.case_id = c.id and not a.is_private
where x.organization_id = :organization_id and x.visitor_id = :visitor_id
order by a.created_at, a.id;

-- name: export_messages
select
    'message' as type,
    m.id,
    m.organization_id,
    m.activity_id,
    m.sender_type,
    m.sender_user_id,
    m.text,
    m.created_at,
    m.read_at,
    m.is_private
from contacts x
join cases c on c.organization_id = :organization_id and c.contact_id = x.id
join messages m on m.organization_id = :organization_id and m.case_id = c.id and not m.is_private
where x.organization_id = :organization_id and x.visitor_id = :visitor_id
order by m.created_at, m.id;

-- name: export_events
-- The visitor's events, and events in these cases under an earlier external id of the visitor: one that no other visitor
-- has. A case that was another visitor's has that visitor's events, too, which stay theirs.
select
    'event' as type,
    e.organization_id,
    e.position,
    e.type as event_type,
    e.created_at,
    e.external_id,
    e.case_id,
    e.case_number,
    e.message_id
from events e
where e.organization_id = :organization_id
    and (
        e.external_id = :external_id
        or (
            e.case_id in (
                select c.id
                from contacts x
                join cases c on c.organization_id = :organization_id and c.contact_id = x.id
                where x.organization_id = :organization_id and x.visitor_id = :visitor_id
            )
            and not exists (
                select from visitors o where o.organization_id = :organization_id and o.external_id = e.external_id
            )
        )
    )
order by e.position;

-- name: lock_visitor
select v.id
from visitors v
where v.organization_id = :organization_id and v.external_id = :external_id
for update;

-- name: lock_cases
-- Every session that writes into a case, or moves it to another contact, locks it first.
select count(*)
from (
    select c.id
    from contacts x
    join cases c on c.organization_id = :organization_id and c.contact_id = x.id
    where x.organization_id = :organization_id and x.visitor_id = :visitor_id
    order by c.id
    for update of c
) locked;

-- name: lock_contacts
-- From here on, nobody can assign a case to these contacts.
select count(*)
from (
    select x.id
    from contacts x
    where x.organization_id = :organization_id and x.visitor_id = :visitor_id
    order by x.id
    for update
) locked;

-- name: lock_events
-- Locked so that nobody prunes these before they are removed.
select count(*)
from (
    select e.position
    from events e
    where e.organization_id = :organization_id
        and (
            e.external_id = :external_id
            or (
                e.case_id in (
                    select c.id
                    from contacts x
                    join cases c on c.organization_id = :organization_id and c.contact_id = x.id
                    where x.organization_id = :organization_id and x.visitor_id = :visitor_id
                )
                and not exists (
                    select from visitors o where o.organization_id = :organization_id and o.external_id = e.external_id
                )
            )
        )
    order by e.position
    for update
) locked;

-- name: erase_events!
delete from events e
where e.organization_id = :organization_id
    and (
        e.external_id = :external_id
        or (
            e.case_id in (
                select c.id
                from contacts x
                join cases c on c.organization_id = :organization_id and c.contact_id = x.id
                where x.organization_id = :organization_id and x.visitor_id = :visitor_id
            )
            and not exists (
                select from visitors o where o.organization_id = :organization_id and o.external_id = e.external_id
            )
        )
    );

-- name: erase_messages!
-- Notes included: they are about the person.
delete from messages m
using contacts x
join cases c on c.organization_id = :organization_id and c.contact_id = x.id
where m.organization_id = :organization_id
    and m.case_id = c.id
    and x.organization_id = :organization_id
    and x.visitor_id = :visitor_id;

-- name: erase_activities!
delete from activities a
using contacts x
join cases c on c.organization_id = :organization_id and c.contact_id = x.id
where a.organization_id = :organization_id
    and a.case_id = c.id
    and x.organization_id = :organization_id
    and x.visitor_id = :visitor_id;

-- name: erase_cases!
delete from cases c
using contacts x
where c.organization_id = :organization_id
    and c.contact_id = x.id
    and x.organization_id = :organization_id
    and x.visitor_id = :visitor_id;

-- name: erase_contacts!
delete from contacts x where x.organization_id = :organization_id and x.visitor_id = :visitor_id;

-- name: erase_visitor!
delete from visitors v where v.organization_id = :organization_id and v.id = :visitor_id;

-- name: forget_values!
-- The planner's statistics hold the most common values of columns, and bounds between others. For a table without rows
-- they stay until it has some again.
analyze (skip_locked) visitors, contacts, cases, messages, events;

-- name: add_erasure_key!
-- Once for each organization: hashes made with it stay comparable.
insert into erasure_keys (organization_id, key)
values (:organization_id, :key)
on conflict (organization_id) do nothing;

-- name: get_erasure_key
-- No row: the organization has not erased anybody.
select k.key from erasure_keys k where k.organization_id = :organization_id;

-- name: add_erased_visitor
insert into erased_visitors (organization_id, external_id_hash, erased_at)
values (:organization_id, :external_id_hash, now())
on conflict (organization_id, external_id_hash) do update set erased_at = excluded.erased_at
returning erased_at;

-- name: get_erased_visitor
select e.erased_at
from erased_visitors e
where e.organization_id = :organization_id and e.external_id_hash = :external_id_hash;

-- name: remove_erased_visitor!
delete from erased_visitors e
where e.organization_id = :organization_id and e.external_id_hash = :external_id_hash;

-- name: list_erased_everywhere
-- For the organizations of a load, most of which have none.
select e.organization_id::text, k.key, e.external_id_hash
from erased_visitors e
join erasure_keys k on k.organization_id = e.organization_id
where e.organization_id = any (:organizations::uuid[]);

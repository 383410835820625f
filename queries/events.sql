-- Events of visitors' actions, for the system that holds the cases. An organization's positions come from one row,
-- which a transaction that writes an event locks until it commits: they grow in commit order.

-- name: list_events
-- At least one row, with the position up to which events were pruned. A null position: no events after :after. A null
-- message: it has been removed, or there was none.
select
    pruned.position as pruned_position,
    e.position,
    e.type,
    e.created_at,
    e.external_id,
    e.case_id,
    e.case_number,
    m.id as "message.id",
    m.organization_id as "message.organization_id",
    m.case_id as "message.case_id",
    m.activity_id as "message.activity_id",
    m.sender_type as "message.sender_type",
    sender.id as "message.sender.id",
    sender.organization_id as "message.sender.organization_id",
    sender.email as "message.sender.email",
    sender.first_name as "message.sender.first_name",
    sender.last_name as "message.sender.last_name",
    sender.full_name as "message.sender.full_name",
    sender.alias as "message.sender.alias",
    sender.title as "message.sender.title",
    sender.avatar_url as "message.sender.avatar_url",
    m.text as "message.text",
    m.created_at as "message.created_at",
    m.read_at as "message.read_at",
    m.is_private as "message.is_private"
from (
    select coalesce(
        (select p.pruned_position from event_positions p where p.organization_id = :organization_id), 0
    ) as position
) pruned
left join lateral (
    select e.position, e.type, e.created_at, e.external_id, e.case_id, e.case_number, e.message_id
    from events e
    where e.organization_id = :organization_id and e.position > :after::bigint
    order by e.position
    limit :row_limit
) e on true
left join messages m on m.organization_id = :organization_id and m.id = e.message_id and not m.is_private
left join users sender on sender.organization_id = :organization_id and sender.id = m.sender_user_id
order by e.position;

-- name: advance_position!
insert into event_positions (organization_id, last_position)
values (:organization_id, 1)
on conflict (organization_id) do update set last_position = event_positions.last_position + 1;

-- name: add_event!
-- At the position that the transaction has just taken. The organization is that of a row, so that Citus inserts on the
-- row's node: it cannot copy rows there where row security holds.
insert into events (organization_id, position, type, created_at, external_id, case_id, case_number, message_id)
select
    p.organization_id,
    p.last_position,
    :type,
    :now::timestamptz,
    :external_id,
    c.id,
    c.case_number,
    :message_id::uuid
from event_positions p
join cases c on c.organization_id = :organization_id and c.id = :case_id::uuid
where p.organization_id = :organization_id;

-- name: prune_removed_rows_everywhere!
-- A delivery after that brings the row back.
delete from removed_rows r where r.removed_at < :before::timestamptz;

-- name: list_organizations_with_events_before_everywhere
select distinct e.organization_id from events e where e.created_at < :before::timestamptz order by e.organization_id;

-- name: lock_position
-- Runs before the position to prune up to is decided: nobody adds an event meanwhile.
select p.last_position from event_positions p where p.organization_id = :organization_id for update;

-- name: note_pruned!
-- Events are pruned up to the first one that stays. A request for earlier ones is answered that they are gone.
update event_positions
set pruned_position = greatest(
    pruned_position,
    coalesce(
        (
            select e.position - 1
            from events e
            where e.organization_id = :organization_id and e.created_at >= :before::timestamptz
            order by e.position
            limit 1
        ),
        last_position
    )
)
where organization_id = :organization_id;

-- name: prune_events!
delete from events e
using event_positions p
where p.organization_id = :organization_id
    and e.organization_id = :organization_id
    and e.position <= p.pruned_position;

-- A summary of a visitor's cases in a few numbers.

-- name: summarize_cases
-- One row for a visitor, none without such a visitor. Reads the index entries of all the visitor's cases, or of those
-- in a range of updated_at, from the index cases_of_contact_by_update. The contacts are found by themselves, as in
-- cases.sql.
select s.*
from visitors v
cross join lateral (
    select
        count(c.id) as total,
        count(c.id) filter (where c.status = 'Open') as open,
        count(c.id) filter (where c.status = 'In Progress') as in_progress,
        count(c.id) filter (where c.status = 'Pending') as pending,
        count(c.id) filter (where c.status = 'Closed') as closed,
        coalesce(sum(c.unread_message_count), 0)::bigint as unread_message_count,
        count(c.id) filter (where c.is_waiting) as waiting_count,
        max(c.updated_at) as latest_updated_at,
        coalesce(sum(c.visitor_unread_message_count), 0)::bigint as visitor_unread_message_count
    from (
        select o.id
        from contacts o
        where o.organization_id = :organization_id and o.visitor_id = v.id
        offset 0
    ) x
    join cases c
        on c.organization_id = :organization_id
        and c.contact_id = x.id
        and c.created_at >= :created_since::timestamptz
        and c.created_at < :created_until::timestamptz
        and c.updated_at >= :updated_since::timestamptz
        and c.updated_at < :updated_until::timestamptz
        and array_position(:statuses::text[], c.status) is not null
        and array_position(:priorities::smallint[], c.priority) is not null
        and array_position(:channels::smallint[], c.channel_number) is not null
) s
where v.organization_id = :organization_id
    and v.external_id = :external_id;

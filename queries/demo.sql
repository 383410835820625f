-- The visitors that the demo's portal can sign in as, and the unread messages of their cases.

-- name: list_visitors_to_show
-- The visitors of several contacts with the most to show: open and closed cases, the newest open case, the most cases.
with counted as (
    select
        v.external_id,
        count(distinct c.id) as contacts,
        count(*) filter (where not k.is_closed) as open_cases,
        count(*) filter (where k.is_closed) as closed_cases,
        count(*) as all_cases,
        max(k.created_at) filter (where not k.is_closed) as newest_open
    from visitors v
    join contacts c on c.organization_id = :organization_id and c.visitor_id = v.id
    join cases k on k.organization_id = :organization_id and k.contact_id = c.id
    where v.organization_id = :organization_id
    group by v.external_id
    having count(distinct c.id) > 1
),
placed as (
    select
        *,
        row_number() over (order by least(open_cases, closed_cases) desc, all_cases desc, external_id) as by_variety,
        row_number() over (order by newest_open desc nulls last, external_id) as by_newest,
        row_number() over (order by all_cases desc, external_id) as by_size
    from counted
)
select external_id, contacts, open_cases, closed_cases
from placed
where by_variety <= 4 or by_newest = 1 or by_size = 1
order by by_variety;

-- name: get_newest_open_case
select k.id, k.case_number, k.subject
from visitors v
join contacts c on c.organization_id = :organization_id and c.visitor_id = v.id
join cases k on k.organization_id = :organization_id and k.contact_id = c.id and not k.is_closed
where v.organization_id = :organization_id and v.external_id = :external_id
order by k.created_at desc, k.id desc
limit 1;

-- name: count_unread_of_visitors!
update cases
set visitor_unread_message_count = counted.unread
from (
    select m.case_id, count(*) as unread
    from messages m
    where m.organization_id = :organization_id
        and m.sender_type = 'user'
        and m.read_at is null
        and not m.is_private
    group by m.case_id
) counted
where cases.organization_id = :organization_id and cases.id = counted.case_id;

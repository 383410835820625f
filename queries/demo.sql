-- Whom the demo's portal can be signed in as, and the conversations that are made up for its cases.

-- name: list_visitors_to_show
-- Visitors of several contacts who have most to show: open and closed cases, the newest open case, the most cases.
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

-- name: add_activity!
-- What is made up, and is made up again at each start, takes the place of what is there.
insert into activities (organization_id, id, case_id, channel, created_at, updated_at, ended_at)
values (:organization_id, :id, :case_id, :channel, :created_at, :updated_at, :ended_at)
on conflict (organization_id, id) do update
set created_at = excluded.created_at, updated_at = excluded.updated_at, ended_at = excluded.ended_at;

-- name: add_message!
insert into messages (
    organization_id, id, case_id, activity_id, sender_type, sender_user_id, text, created_at, read_at, is_private
)
values (
    :organization_id, :id, :case_id, :activity_id, :sender_type, :sender_user_id, :text, :created_at, :read_at,
    :is_private
)
on conflict (organization_id, id) do update set created_at = excluded.created_at, read_at = excluded.read_at;

-- name: count_messages_of_activities!
update activities
set message_count = counted.messages, private_message_count = counted.notes
from (
    select
        m.activity_id,
        count(*) filter (where not m.is_private) as messages,
        count(*) filter (where m.is_private) as notes
    from messages m
    where m.organization_id = :organization_id
    group by m.activity_id
) counted
where activities.organization_id = :organization_id and activities.id = counted.activity_id;

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

-- A case's activities and messages, in pages, and one message; and the reads and writes of a transaction that writes a
-- message, marks messages as read, or closes or reopens the case.
--
-- A page costs as much as its size, however many messages the case has: its keys come from an index, in order. The
-- statements of pages run as they are, ascending. cases_service/store/conversations.py derives the descending ones from
-- them. Keys lie after (:after, :after_id); :look_behind checks whether there are any on the other side, once and not
-- for each row.
--
-- A visitor's transaction does not see notes at all (row security in schema.sql). A visitor's pages exclude them once
-- more so that the index is used.

-- name: list_messages_of_visitor
-- No row: no such visitor. One row with a null found_id: no such case of theirs; with a null id: no messages.
with found as materialized (
    select
        v.id as visitor_id,
        (
            select c.id
            from cases c
            where c.organization_id = :organization_id
                and c.id = :case_id::uuid
                and (
                    select true
                    from contacts x
                    where x.organization_id = :organization_id and x.visitor_id = v.id and x.id = c.contact_id
                )
        ) as case_id
    from visitors v
    where v.organization_id = :organization_id and v.external_id = :external_id
),
page as materialized (
    select key.created_at, key.id
    from found f
    cross join lateral (
        select k.created_at, k.id
        from messages k
        where k.organization_id = :organization_id
            and k.case_id = f.case_id
            and k.is_private = false
            and (k.created_at, k.id) > (:after::timestamptz, :after_id::uuid)
        order by k.created_at, k.id
        limit :row_limit
    ) key
)
select
    f.visitor_id,
    f.case_id as found_id,
    :look_behind and exists (
        select
        from messages k
        where k.organization_id = :organization_id
            and k.case_id = (select b.case_id from found b)
            and k.is_private = false
            and (k.created_at, k.id) <= (:after::timestamptz, :after_id::uuid)
        order by k.created_at desc, k.id desc
        limit 1
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    m.id,
    m.organization_id,
    m.case_id,
    m.activity_id,
    m.sender_type,
    sender.id as "sender.id",
    sender.organization_id as "sender.organization_id",
    sender.email as "sender.email",
    sender.first_name as "sender.first_name",
    sender.last_name as "sender.last_name",
    sender.full_name as "sender.full_name",
    sender.alias as "sender.alias",
    sender.title as "sender.title",
    sender.avatar_url as "sender.avatar_url",
    m.text,
    m.created_at,
    m.read_at,
    m.is_private
from found f
left join page p on true
left join messages m on m.organization_id = :organization_id and m.id = p.id
left join users sender on sender.organization_id = :organization_id and sender.id = m.sender_user_id
order by p.created_at, p.id;

-- name: list_activities_of_visitor
-- Likewise.
with found as materialized (
    select
        v.id as visitor_id,
        (
            select c.id
            from cases c
            where c.organization_id = :organization_id
                and c.id = :case_id::uuid
                and (
                    select true
                    from contacts x
                    where x.organization_id = :organization_id and x.visitor_id = v.id and x.id = c.contact_id
                )
        ) as case_id
    from visitors v
    where v.organization_id = :organization_id and v.external_id = :external_id
),
page as materialized (
    select key.created_at, key.id
    from found f
    cross join lateral (
        select k.created_at, k.id
        from activities k
        where k.organization_id = :organization_id
            and k.case_id = f.case_id
            and k.is_private = false
            and (k.created_at, k.id) > (:after::timestamptz, :after_id::uuid)
        order by k.created_at, k.id
        limit :row_limit
    ) key
)
select
    f.visitor_id,
    f.case_id as found_id,
    :look_behind and exists (
        select
        from activities k
        where k.organization_id = :organization_id
            and k.case_id = (select b.case_id from found b)
            and k.is_private = false
            and (k.created_at, k.id) <= (:after::timestamptz, :after_id::uuid)
        order by k.created_at desc, k.id desc
        limit 1
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    a.id,
    a.organization_id,
    a.case_id,
    a.channel,
    a.created_at,
    a.updated_at,
    a.ended_at is not null as is_ended,
    a.ended_at,
    a.message_count as message_count
from found f
left join page p on true
left join activities a on a.organization_id = :organization_id and a.id = p.id
order by p.created_at, p.id;

-- name: list_messages_of_organization
-- No row: no such case. Notes and other messages are two streams of an index, and merged.
with found as materialized (
    select c.id as case_id
    from cases c
    where c.organization_id = :organization_id and c.id = :case_id::uuid
),
page as materialized (
    select key.created_at, key.id
    from found f
    cross join (values (false), (true)) as stream (is_private)
    cross join lateral (
        select k.created_at, k.id
        from messages k
        where k.organization_id = :organization_id
            and k.case_id = f.case_id
            and k.is_private = stream.is_private
            and (k.created_at, k.id) > (:after::timestamptz, :after_id::uuid)
        order by k.created_at, k.id
        limit :row_limit
    ) key
    order by key.created_at, key.id
    limit :row_limit
)
select
    null::uuid as visitor_id,
    f.case_id as found_id,
    :look_behind and exists (
        select
        from (values (false), (true)) as stream (is_private)
        cross join lateral (
            select
            from messages k
            where k.organization_id = :organization_id
                and k.case_id = (select b.case_id from found b)
                and k.is_private = stream.is_private
                and (k.created_at, k.id) <= (:after::timestamptz, :after_id::uuid)
            order by k.created_at desc, k.id desc
            limit 1
        ) behind
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    m.id,
    m.organization_id,
    m.case_id,
    m.activity_id,
    m.sender_type,
    sender.id as "sender.id",
    sender.organization_id as "sender.organization_id",
    sender.email as "sender.email",
    sender.first_name as "sender.first_name",
    sender.last_name as "sender.last_name",
    sender.full_name as "sender.full_name",
    sender.alias as "sender.alias",
    sender.title as "sender.title",
    sender.avatar_url as "sender.avatar_url",
    m.text,
    m.created_at,
    m.read_at,
    m.is_private
from found f
left join page p on true
left join messages m on m.organization_id = :organization_id and m.id = p.id
left join users sender on sender.organization_id = :organization_id and sender.id = m.sender_user_id
order by p.created_at, p.id;

-- name: list_activities_of_organization
-- No row: no such case.
with found as materialized (
    select c.id as case_id
    from cases c
    where c.organization_id = :organization_id and c.id = :case_id::uuid
),
page as materialized (
    select key.created_at, key.id
    from found f
    cross join lateral (
        select k.created_at, k.id
        from activities k
        where k.organization_id = :organization_id
            and k.case_id = f.case_id
            and (k.created_at, k.id) > (:after::timestamptz, :after_id::uuid)
        order by k.created_at, k.id
        limit :row_limit
    ) key
)
select
    null::uuid as visitor_id,
    f.case_id as found_id,
    :look_behind and exists (
        select
        from activities k
        where k.organization_id = :organization_id
            and k.case_id = (select b.case_id from found b)
            and (k.created_at, k.id) <= (:after::timestamptz, :after_id::uuid)
        order by k.created_at desc, k.id desc
        limit 1
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    a.id,
    a.organization_id,
    a.case_id,
    a.channel,
    a.created_at,
    a.updated_at,
    a.ended_at is not null as is_ended,
    a.ended_at,
    a.message_count + a.private_message_count as message_count
from found f
left join page p on true
left join activities a on a.organization_id = :organization_id and a.id = p.id
order by p.created_at, p.id;

-- name: find_case_of_visitor
-- No row: no such visitor. A null case_id: no such case of theirs.
select
    v.id as visitor_id,
    (
        select c.id
        from cases c
        where c.organization_id = :organization_id
            and c.id = :case_id::uuid
            and (
                select true
                from contacts x
                where x.organization_id = :organization_id and x.visitor_id = v.id and x.id = c.contact_id
            )
    ) as case_id
from visitors v
where v.organization_id = :organization_id and v.external_id = :external_id;

-- name: lock_case_of_visitor
-- Other writers to the case wait here, and later statements see what the previous writer wrote. No row: the case is not
-- the visitor's.
select c.id
from cases c
where c.organization_id = :organization_id
    and c.id = :case_id::uuid
    and (
        select true
        from contacts x
        where x.organization_id = :organization_id
            and x.visitor_id = (
                select v.id
                from visitors v
                where v.organization_id = :organization_id and v.external_id = :external_id
            )
            and x.id = c.contact_id
    )
for update of c;

-- name: get_conversation
-- The state that a change depends on, and the time, read once the case is locked, so that it grows with each change.
select
    clock_timestamp() as now,
    c.status,
    c.owner_id,
    c.is_waiting,
    c.unread_message_count,
    c.visitor_unread_message_count,
    c.latest_messaging_channel,
    c.channel_priority,
    exists (
        select from users u where u.organization_id = :organization_id and u.id = :sender_user_id::uuid
    ) as has_sender
from cases c
where c.organization_id = :organization_id and c.id = :case_id::uuid;

-- name: list_open_activities
-- Each channel's newest activity that has not ended, the newest of all first.
select newest.id, newest.channel, newest.is_private
from (
    select distinct on (a.channel, a.is_private) a.id, a.channel, a.is_private, a.created_at
    from activities a
    where a.organization_id = :organization_id and a.case_id = :case_id::uuid and a.ended_at is null
    order by a.channel, a.is_private, a.created_at desc, a.id desc
) newest
order by newest.created_at desc, newest.id desc;

-- name: get_message
-- No row: the organization has no message with this id, or it is a note that the caller may not see.
select
    m.id,
    m.organization_id,
    m.case_id,
    m.activity_id,
    m.sender_type,
    sender.id as "sender.id",
    sender.organization_id as "sender.organization_id",
    sender.email as "sender.email",
    sender.first_name as "sender.first_name",
    sender.last_name as "sender.last_name",
    sender.full_name as "sender.full_name",
    sender.alias as "sender.alias",
    sender.title as "sender.title",
    sender.avatar_url as "sender.avatar_url",
    m.text,
    m.created_at,
    m.read_at,
    m.is_private
from messages m
left join users sender on sender.organization_id = :organization_id and sender.id = m.sender_user_id
where m.organization_id = :organization_id and m.id = :message_id::uuid;

-- name: count_unread
-- How many messages of one side the other has not read: all, and those after a given message of the case (none if no
-- message is given).
with until as materialized (
    select u.created_at, u.id
    from messages u
    where u.organization_id = :organization_id and u.case_id = :case_id::uuid and u.id = :until::uuid
)
select
    (select created_at from until) as until_at,
    count(*) as unread,
    count(*) filter (where (m.created_at, m.id) > (select created_at, id from until)) as remaining
from messages m
where m.organization_id = :organization_id
    and m.case_id = :case_id::uuid
    and m.sender_type = :sender_type
    and m.read_at is null
    and not m.is_private;

-- name: mark_read!
update messages
set read_at = :now::timestamptz
where organization_id = :organization_id
    and case_id = :case_id::uuid
    and sender_type = :sender_type
    and read_at is null
    and not is_private
    and (created_at, id) <= (:until_at::timestamptz, :until_id::uuid);

-- name: add_activity!
insert into activities (
    organization_id, id, case_id, channel, created_at, updated_at, is_private
)
values (
    :organization_id, :activity_id, :case_id, :channel, :now::timestamptz, :now::timestamptz, :is_private
);

-- name: add_message!
insert into messages (
    organization_id, id, case_id, activity_id, sender_type, sender_user_id, text, created_at, is_private
)
values (
    :organization_id, :message_id, :case_id, :activity_id, :sender_type, :sender_user_id, :text, :now::timestamptz,
    :is_private
);

-- name: count_message!
update activities
set message_count = message_count + 1,
    updated_at = least(
        greatest(:now::timestamptz, (updated_at at time zone 'UTC' + interval '1 millisecond') at time zone 'UTC'),
        '9999-12-31 23:59:59.999999+00'
    )
where organization_id = :organization_id and id = :activity_id::uuid;

-- name: count_note!
-- In an activity that visitors see, this changes nothing that they see.
update activities
set private_message_count = private_message_count + 1,
    updated_at = case
        when is_private
        then least(
            greatest(:now::timestamptz, (updated_at at time zone 'UTC' + interval '1 millisecond') at time zone 'UTC'),
            '9999-12-31 23:59:59.999999+00'
        )
        else updated_at
    end
where organization_id = :organization_id and id = :activity_id::uuid;

-- name: change_conversation!
-- The time grows with every change, as in change_case.
update cases
set status = :status,
    closed_at = case when :status = 'Closed' then coalesce(closed_at, :now::timestamptz) end,
    is_waiting = :is_waiting,
    unread_message_count = :unread_message_count,
    visitor_unread_message_count = :visitor_unread_message_count,
    latest_messaging_channel = :latest_messaging_channel,
    channel_priority = :channel_priority,
    updated_at = least(
        greatest(:now::timestamptz, (updated_at at time zone 'UTC' + interval '1 millisecond') at time zone 'UTC'),
        '9999-12-31 23:59:59.999999+00'
    )
where organization_id = :organization_id and id = :case_id::uuid;

-- What an author would write who cares for speed and for nothing else: the statements of the contestants that have none
-- of the service's. They name the organization in every table, and rely on the same indexes.

-- name: get_keys
-- The live signing keys of the organization of a valid API token.
select k.id, k.algorithm, k.encrypted_secret
from api_tokens t
join organizations o on o.organization_id = t.organization_id
join signing_keys k on k.organization_id = t.organization_id
where t.organization_id = %(organization_id)s
    and t.token_hash = %(token_hash)s
    and t.revoked_at is null
    and (t.expires_at is null or t.expires_at > now())
    and o.subscription_status = 'active'
    and (o.subscription_ends_at is null or o.subscription_ends_at > now())
    and (k.retired_at is null or k.retired_at > now());

-- name: list_keys
-- Where a page of a visitor's cases lies behind a key, in the order of creation: the next keys of each contact, merged.
-- The other direction has the opposite sign and orders.
select key.created_at, key.id
from visitors v
join contacts x on x.organization_id = v.organization_id and x.visitor_id = v.id
cross join lateral (
    select k.created_at, k.id
    from cases k
    where k.organization_id = x.organization_id
        and k.contact_id = x.id
        and (k.created_at, k.id) > (%(after)s::timestamptz, %(after_id)s::uuid)
    order by k.created_at, k.id
    limit %(row_limit)s
) key
where v.organization_id = %(organization_id)s
    and v.external_id = %(external_id)s
order by key.created_at, key.id
limit %(row_limit)s;

-- name: find_key
-- The same of one case.
select c.created_at, c.id
from visitors v
join contacts x on x.organization_id = v.organization_id and x.visitor_id = v.id
join cases c on c.organization_id = x.organization_id and c.contact_id = x.id
where v.organization_id = %(organization_id)s
    and v.external_id = %(external_id)s
    and c.id = %(case_id)s::uuid;

-- name: read_cases
-- What is shown of the cases of these keys: one of the two statements above stands for the word in the brackets.
select
    c.id,
    c.organization_id,
    c.case_number,
    c.contact_id,
    x.first_name,
    x.last_name,
    x.full_name,
    x.email,
    x.phone,
    x.created_at,
    x.updated_at,
    c.owner_id,
    o.email,
    o.first_name,
    o.last_name,
    o.full_name,
    o.alias,
    o.title,
    o.avatar_url,
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
    a.email,
    a.first_name,
    a.last_name,
    a.full_name,
    a.alias,
    a.title,
    a.avatar_url,
    c.updated_by_user_id,
    e.email,
    e.first_name,
    e.last_name,
    e.full_name,
    e.alias,
    e.title,
    e.avatar_url,
    c.case_funnel_stage_id,
    s.name,
    s.position,
    c.channel_priority,
    c.visitor_unread_message_count
from (keys) page
join cases c on c.organization_id = %(organization_id)s and c.id = page.id
join contacts x on x.organization_id = c.organization_id and x.id = c.contact_id
left join users o on o.organization_id = c.organization_id and o.id = c.owner_id
left join users a on a.organization_id = c.organization_id and a.id = c.created_by_user_id
left join users e on e.organization_id = c.organization_id and e.id = c.updated_by_user_id
left join case_funnel_stages s on s.organization_id = c.organization_id and s.id = c.case_funnel_stage_id
order by page.created_at, page.id;

-- name: write_cases
-- The same as the text of an answer's results, with the first and the last key: whether there are more is for the caller
-- to see, who asks for one key more than there are cases on a page.
select
    coalesce(json_agg(shown.document order by shown.created_at, shown.id), '[]')::text,
    (array_agg(shown.place order by shown.created_at, shown.id))[1],
    (array_agg(shown.place order by shown.created_at desc, shown.id desc))[1],
    max(shown.keys)
from (
    select
        page.created_at,
        page.id,
        page.keys,
        (extract(epoch from page.created_at) * 1000000)::bigint || '_' || page.id as place,
        json_build_object(
            'id', c.id,
            'organization_id', c.organization_id,
            'case_number', c.case_number,
            'contact_id', c.contact_id,
            'contact', json_build_object(
                'id', x.id,
                'organization_id', x.organization_id,
                'first_name', x.first_name,
                'last_name', x.last_name,
                'full_name', x.full_name,
                'email', x.email,
                'phone', x.phone,
                'created_at', x.created_at,
                'updated_at', x.updated_at
            ),
            'owner_id', c.owner_id,
            'owner', case
                when o.id is not null
                then json_build_object(
                    'id', o.id, 'organization_id', o.organization_id, 'email', o.email, 'first_name', o.first_name,
                    'last_name', o.last_name, 'full_name', o.full_name, 'alias', o.alias, 'title', o.title,
                    'avatar_url', o.avatar_url
                )
            end,
            'subject', c.subject,
            'description', c.description,
            'status', c.status,
            'priority', c.priority,
            'priority_label', (array['None', 'Low', 'Normal', 'High', 'Critical'])[c.priority],
            'latest_messaging_channel', c.latest_messaging_channel,
            'is_closed', c.is_closed,
            'closed_at', c.closed_at,
            'is_waiting', c.is_waiting,
            'unread_message_count', c.unread_message_count,
            'created_at', c.created_at,
            'updated_at', c.updated_at,
            'created_by_user_id', c.created_by_user_id,
            'created_by_user', case
                when a.id is not null
                then json_build_object(
                    'id', a.id, 'organization_id', a.organization_id, 'email', a.email, 'first_name', a.first_name,
                    'last_name', a.last_name, 'full_name', a.full_name, 'alias', a.alias, 'title', a.title,
                    'avatar_url', a.avatar_url
                )
            end,
            'updated_by_user_id', c.updated_by_user_id,
            'updated_by_user', case
                when e.id is not null
                then json_build_object(
                    'id', e.id, 'organization_id', e.organization_id, 'email', e.email, 'first_name', e.first_name,
                    'last_name', e.last_name, 'full_name', e.full_name, 'alias', e.alias, 'title', e.title,
                    'avatar_url', e.avatar_url
                )
            end,
            'case_funnel_stage', case
                when s.id is not null
                then json_build_object(
                    'id', s.id, 'organization_id', s.organization_id, 'name', s.name, 'position', s.position
                )
            end,
            'case_funnel_stage_id', c.case_funnel_stage_id,
            'channel_priority', c.channel_priority,
            'visitor_unread_message_count', c.visitor_unread_message_count
        ) as document
    from (
        select found.created_at, found.id, count(*) over () as keys
        from (keys) found
        order by found.created_at, found.id
        limit %(row_limit)s - 1
    ) page
    join cases c on c.organization_id = %(organization_id)s and c.id = page.id
    join contacts x on x.organization_id = c.organization_id and x.id = c.contact_id
    left join users o on o.organization_id = c.organization_id and o.id = c.owner_id
    left join users a on a.organization_id = c.organization_id and a.id = c.created_by_user_id
    left join users e on e.organization_id = c.organization_id and e.id = c.updated_by_user_id
    left join case_funnel_stages s on s.organization_id = c.organization_id and s.id = c.case_funnel_stage_id
) shown;

-- name: upsert_case!
-- A case as an organization's feed brings it, whatever is there.
insert into cases (
    organization_id, id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, is_waiting, unread_message_count, created_at, updated_at,
    created_by_user_id, updated_by_user_id, case_funnel_stage_id, visitor_unread_message_count
)
values (
    %(organization_id)s, %(id)s, %(case_number)s, %(contact_id)s, %(owner_id)s, %(subject)s, %(description)s,
    %(status)s, %(priority)s, %(latest_messaging_channel)s, %(channel_priority)s, %(closed_at)s, %(is_waiting)s,
    %(unread_message_count)s, %(created_at)s, %(updated_at)s, %(created_by_user_id)s, %(updated_by_user_id)s,
    %(case_funnel_stage_id)s, %(visitor_unread_message_count)s
)
on conflict (organization_id, id) do update
set case_number = excluded.case_number,
    contact_id = excluded.contact_id,
    owner_id = excluded.owner_id,
    subject = excluded.subject,
    description = excluded.description,
    status = excluded.status,
    priority = excluded.priority,
    latest_messaging_channel = excluded.latest_messaging_channel,
    channel_priority = excluded.channel_priority,
    closed_at = excluded.closed_at,
    is_waiting = excluded.is_waiting,
    unread_message_count = excluded.unread_message_count,
    created_at = excluded.created_at,
    updated_at = excluded.updated_at,
    created_by_user_id = excluded.created_by_user_id,
    updated_by_user_id = excluded.updated_by_user_id,
    case_funnel_stage_id = excluded.case_funnel_stage_id,
    visitor_unread_message_count = excluded.visitor_unread_message_count;

-- The data set: everything follows from the numbers in benchmark_visitors, so that it is the same everywhere.

-- name: find_dataset
-- What the database holds; no row where it was not finished.
select description from benchmark_dataset;

-- name: has_dataset
select to_regclass('benchmark_dataset') is not null;

-- name: create_specification!
create table benchmark_visitors (
    number integer primary key,
    external_id text not null,
    contacts integer not null,
    cases integer not null,
    skewed boolean not null
);

-- name: specify_ordinary_visitors!
-- A contact from the chat and one from the phone call, 25 cases.
insert into benchmark_visitors
select n, 'ordinary-' || n, 2, 25, false
from generate_series(1, %(visitors)s) n;

-- name: specify_visitor!
insert into benchmark_visitors
select max(number) + 1, %(external_id)s, %(contacts)s, %(cases)s, true
from benchmark_visitors;

-- name: fill_organization!
insert into organizations (organization_id, name, subscription_status)
values (%(organization_id)s, 'Benchmark', 'active');

-- name: fill_users!
insert into users (organization_id, id, email, first_name, last_name, alias, title, avatar_url)
select
    %(organization_id)s,
    md5('user ' || n)::uuid,
    'agent.' || n || '@support.example.com',
    (array['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald'])[1 + n %% 5],
    (array['Byron', 'Hopper', 'Dijkstra', 'Liskov', 'Knuth', 'Perlman', 'Lamport'])[1 + n %% 7],
    'agent' || n,
    'Customer support specialist',
    'https://cdn.example.com/avatars/' || md5('user ' || n) || '.png'
from generate_series(0, 49) n;

-- name: fill_stages!
insert into case_funnel_stages (organization_id, id, name, position)
select %(organization_id)s, md5('stage ' || n)::uuid, 'Stage ' || n, n
from generate_series(0, 7) n;

-- name: fill_visitors!
insert into visitors (organization_id, id, external_id)
select %(organization_id)s, md5('visitor ' || number)::uuid, external_id
from benchmark_visitors;

-- name: fill_contacts!
insert into contacts (
    organization_id, id, visitor_id, first_name, last_name, email, phone, created_at, updated_at
)
select
    %(organization_id)s,
    md5('contact ' || v.number || ' ' || n)::uuid,
    md5('visitor ' || v.number)::uuid,
    'Customer',
    'Number ' || v.number,
    'customer.' || v.number || '.' || n || '@mail.example.com',
    '+1 555 ' || lpad((v.number * 10 + n)::text, 9, '0'),
    '2014-01-01'::timestamptz + n * interval '1 hour',
    '2024-06-01'::timestamptz + n * interval '1 hour'
from benchmark_visitors v
cross join generate_series(0, v.contacts - 1) n;

-- name: fill_cases!
-- Ten years of cases, evenly spread for each visitor, and written in the order in which they were created, so that a
-- visitor's cases lie scattered over the table. Of the skewed visitors ten cases are open, twenty have priority 5,
-- and none ever came by webchat.
insert into cases (
    organization_id, id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, is_waiting, unread_message_count, created_at, updated_at,
    created_by_user_id, updated_by_user_id, case_funnel_stage_id
)
select
    %(organization_id)s,
    md5('case ' || number || ' ' || n)::uuid,
    'C-' || number || '-' || n,
    md5('contact ' || number || ' ' || n %% contacts)::uuid,
    case when random %% 10 > 0 then md5('user ' || random %% 50)::uuid end,
    'Street light out at corner ' || random %% 10000,
    repeat('The lamp at the corner has been dark for days. ', 3 + (random %% 5)::integer),
    status,
    case when not skewed then 1 + random %% 5 when n %% (cases / 20) = 1 then 5 else 1 + random %% 4 end,
    channel,
    case channel when 'email' then 1 when 'whatsapp' then 2 when 'webchat' then 3 end,
    case when status = 'Closed' then created_at + interval '1 day' end,
    random %% 7 = 0,
    random %% 3,
    created_at,
    created_at + (random %% 31536000000000) * interval '1 microsecond',
    md5('user ' || random %% 47)::uuid,
    md5('user ' || random %% 43)::uuid,
    case when random %% 4 > 0 then md5('stage ' || random %% 8)::uuid end
from (
    select
        *,
        case
            when skewed then case when n %% (cases / 10) = 1 then 'Open' else 'Closed' end
            else (array['Open', 'In Progress', 'Pending', 'Closed', 'Closed', 'Closed', 'Closed'])[1 + random %% 7]
        end as status,
        case
            when skewed then (array[null, 'email', 'email', 'whatsapp'])[1 + random / 7 %% 4]
            else (array[null, 'email', 'whatsapp', 'webchat'])[1 + random / 7 %% 4]
        end as channel
    from (
        select
            v.*,
            n,
            hashint8extended(n, v.number) & 9007199254740991 as random,
            '2015-01-01'::timestamptz + interval '1 microsecond' * (
                (n - 1) * (315360000000000 / v.cases)
                + (hashint8extended(n, v.number + 1000000000) & 9007199254740991) %% (315360000000000 / v.cases)
            ) as created_at
        from benchmark_visitors v
        cross join generate_series(1, v.cases) n
        order by created_at
    ) in_order_of_creation
) chosen;

-- name: fill_activities!
-- In the first case of each visitor who is asked for messages: two hundred ordinary ones, and the two with a
-- conversation of a known length.
insert into activities (
    organization_id, id, case_id, channel, created_at, updated_at, message_count
)
select
    %(organization_id)s,
    md5('activity ' || number)::uuid,
    md5('case ' || number || ' 1')::uuid,
    'webchat',
    '2016-01-01',
    '2016-01-01',
    case external_id when 'conversation-100000' then 100000 else 30 end
from benchmark_visitors
where number <= 200 or external_id like 'conversation-%%';

-- name: fill_messages!
-- The visitor and an agent in turn, minute by minute, all read, and a note among users after every tenth.
insert into messages (
    organization_id, id, case_id, activity_id, sender_type, sender_user_id, text, created_at, read_at, is_private
)
select
    organization_id,
    md5('message ' || id || ' ' || n)::uuid,
    case_id,
    id,
    case when n %% 2 = 0 or note then 'user' else 'visitor' end,
    case when n %% 2 = 0 or note then md5('user ' || abs(n) %% 50)::uuid end,
    repeat('We have looked at the lamp, and it is dark again. ', 1 + n %% 5),
    created_at + n * interval '1 minute' + case when note then interval '30 seconds' else interval '0' end,
    created_at + n * interval '1 minute' + interval '45 seconds',
    note
from activities
cross join lateral (
    select n, false as note
    from generate_series(1, message_count) n
    union all
    select -n, true
    from generate_series(10, message_count, 10) n
) said
where organization_id = %(organization_id)s;

-- name: list_constraints
-- Of the table of cases, and of others to it: dropped before it is filled, and made again afterwards, the keys before what
-- refers to them.
select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
from pg_constraint
where (conrelid = 'cases'::regclass and contype in ('p', 'u', 'f'))
    or (confrelid = 'cases'::regclass and contype = 'f')
order by array_position('{p,u,f}'::"char"[], contype), conname;

-- name: list_indexes
select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
from pg_index i
where i.indrelid = 'cases'::regclass
    and not exists (select from pg_constraint c where c.conindid = i.indexrelid);

-- name: finish_dataset!
create table benchmark_dataset as select %(description)s::text as description;

-- name: forget_credentials!
with tokens as (delete from api_tokens where organization_id = %(organization_id)s)
delete from signing_keys where organization_id = %(organization_id)s;

-- name: measure_size
select
    (select count(*) from cases where organization_id = %(organization_id)s),
    pg_size_pretty(pg_database_size(current_database()));

-- name: get_first_case
-- The case of a visitor that has messages, if any has.
select md5('case ' || number || ' 1')::uuid::text
from benchmark_visitors
where external_id = %(external_id)s;

-- name: list_true_messages
-- The plain truth, slowly: what a visitor is shown of the messages of a case.
select
    to_jsonb(m) - '{sender_user_id, is_private}'::text[]
    || jsonb_build_object('sender', to_jsonb(u) - 'content_hash')
from messages m
left join users u on u.organization_id = m.organization_id and u.id = m.sender_user_id
where m.organization_id = %(organization_id)s
    and m.case_id = %(case_id)s
    and not m.is_private
order by m.created_at, m.id
limit %(number)s;

-- name: get_place_of_message
select (extract(epoch from created_at) * 1000000)::bigint, id::text
from (
    select m.*, percent_rank() over (order by m.created_at, m.id) as share
    from messages m
    where m.organization_id = %(organization_id)s
        and m.case_id = %(case_id)s
        and not m.is_private
) ranked
where share >= %(share)s
order by share
limit 1;

-- name: list_columns
-- The columns of a table that are written and not generated.
select attname::text
from pg_attribute
where attrelid = %(name)s::regclass
    and attnum > 0
    and not attisdropped
    and attgenerated = ''
order by attnum;

-- name: list_lines
-- Cases as lines of the load format.
select to_jsonb(c) - '{is_closed, channel_number, content_hash}'::text[]
from cases c
where c.organization_id = %(organization_id)s
    and c.id = any(%(case_ids)s);

-- name: list_all_lines
-- The same of the first cases, in the order of their creation, as text.
select (to_jsonb(c) - '{is_closed, channel_number, content_hash}'::text[] || '{"type": "case"}')::text
from cases c
where c.organization_id = %(organization_id)s
order by c.created_at, c.id
limit %(number)s;

-- name: list_places_by_created_at
-- The key of a visitor's n-th case in the order of creation, for several n.
select place - 1, (extract(epoch from created_at) * 1000000)::bigint, id::text
from (
    select c.created_at, c.id, row_number() over (order by c.created_at, c.id) as place
    from visitors v
    join contacts x on x.organization_id = v.organization_id and x.visitor_id = v.id
    join cases c on c.organization_id = x.organization_id and c.contact_id = x.id
    where v.organization_id = %(organization_id)s
        and v.external_id = %(external_id)s
) ordered
where place - 1 = any(%(places)s);

-- name: list_places_by_updated_at
select place - 1, (extract(epoch from updated_at) * 1000000)::bigint, id::text
from (
    select c.updated_at, c.id, row_number() over (order by c.updated_at, c.id) as place
    from visitors v
    join contacts x on x.organization_id = v.organization_id and x.visitor_id = v.id
    join cases c on c.organization_id = x.organization_id and c.contact_id = x.id
    where v.organization_id = %(organization_id)s
        and v.external_id = %(external_id)s
) ordered
where place - 1 = any(%(places)s);

-- name: list_true_cases
-- The plain truth, slowly: a visitor's cases in the order of creation, written without the service's statements.
select
    to_jsonb(c) - '{channel_number, content_hash}'::text[] || jsonb_build_object(
        'priority_label', (array['None', 'Low', 'Normal', 'High', 'Critical'])[c.priority],
        'contact', to_jsonb(x) - '{visitor_id, content_hash}'::text[],
        'owner', to_jsonb(o) - 'content_hash',
        'created_by_user', to_jsonb(a) - 'content_hash',
        'updated_by_user', to_jsonb(e) - 'content_hash',
        'case_funnel_stage', to_jsonb(s) - 'content_hash'
    )
from visitors v
join contacts x on x.organization_id = v.organization_id and x.visitor_id = v.id
join cases c on c.organization_id = x.organization_id and c.contact_id = x.id
left join users o on o.organization_id = c.organization_id and o.id = c.owner_id
left join users a on a.organization_id = c.organization_id and a.id = c.created_by_user_id
left join users e on e.organization_id = c.organization_id and e.id = c.updated_by_user_id
left join case_funnel_stages s on s.organization_id = c.organization_id and s.id = c.case_funnel_stage_id
where v.organization_id = %(organization_id)s
    and v.external_id = %(external_id)s
order by c.created_at, c.id
offset %(first)s
limit %(number)s;

-- How a load gets from lines to rows: lines are staged as they come, then the last line of each row is kept, then rows
-- are written, parents first, and removed, children first. Only the state after that counts.
--
-- place is a line's place among all lines of all files of the load: the larger, the later.
-- What makes one writing statement fail is found by one of the statements named find_, which then gives the place of
-- the offending line; the statement's savepoint has been rolled back by then, what came before it has not.

-- name: begin#
-- Each statement sees what others have committed before it: a load counts live keys after waiting for their lock.
set transaction isolation level read committed;
set local client_encoding = 'UTF8';

-- name: create_staging#
create temp table staged_organizations (
    place bigint not null,
    id uuid not null,
    name text,
    subscription_status text,
    subscription_ends_at timestamptz
) on commit drop;

create temp table staged_users (
    place bigint not null,
    id uuid not null,
    organization_id uuid not null,
    email text,
    first_name text,
    last_name text,
    alias text,
    title text,
    avatar_url text
) on commit drop;

create temp table staged_signing_keys (
    place bigint not null,
    id uuid not null,
    organization_id uuid not null,
    algorithm text,
    encrypted_secret text,
    public_key text,
    retired_at timestamptz
) on commit drop;

create temp table staged_visitors (
    place bigint not null,
    deleted boolean not null,
    id uuid not null,
    organization_id uuid not null,
    external_id text collate "C"
) on commit drop;

create temp table staged_contacts (
    place bigint not null,
    deleted boolean not null,
    id uuid not null,
    organization_id uuid not null,
    visitor_id uuid,
    first_name text,
    last_name text,
    email text,
    phone text,
    created_at timestamptz,
    updated_at timestamptz
) on commit drop;

create temp table staged_case_funnel_stages (
    place bigint not null,
    deleted boolean not null,
    id uuid not null,
    organization_id uuid not null,
    name text,
    position integer
) on commit drop;

create temp table staged_cases (
    place bigint not null,
    deleted boolean not null,
    id uuid not null,
    organization_id uuid not null,
    case_number text collate "C",
    contact_id uuid,
    owner_id uuid,
    subject text,
    description text,
    status text,
    priority smallint,
    latest_messaging_channel text,
    channel_priority smallint,
    closed_at timestamptz,
    is_waiting boolean,
    unread_message_count integer,
    created_at timestamptz,
    updated_at timestamptz,
    created_by_user_id uuid,
    updated_by_user_id uuid,
    case_funnel_stage_id uuid
) on commit drop;

-- name: copy_organizations!
copy staged_organizations (place, id, name, subscription_status, subscription_ends_at) from stdin;

-- name: copy_users!
copy staged_users (
    place, id, organization_id, email, first_name, last_name, alias, title, avatar_url
) from stdin;

-- name: copy_signing_keys!
copy staged_signing_keys (
    place, id, organization_id, algorithm, encrypted_secret, public_key, retired_at
) from stdin;

-- name: copy_visitors!
copy staged_visitors (place, deleted, id, organization_id, external_id) from stdin;

-- name: copy_contacts!
copy staged_contacts (
    place, deleted, id, organization_id, visitor_id, first_name, last_name, email, phone, created_at, updated_at
) from stdin;

-- name: copy_case_funnel_stages!
copy staged_case_funnel_stages (place, deleted, id, organization_id, name, position) from stdin;

-- name: copy_cases!
copy staged_cases (
    place, deleted, id, organization_id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, is_waiting, unread_message_count, created_at, updated_at,
    created_by_user_id, updated_by_user_id, case_funnel_stage_id
) from stdin;

-- name: keep_last_lines#
-- Nothing analyses temporary tables by itself, and all that follows reads these.
analyze staged_organizations, staged_users, staged_signing_keys, staged_visitors, staged_contacts,
    staged_case_funnel_stages, staged_cases;

delete from staged_organizations earlier
using (
    select id, max(place) as place from staged_organizations group by id having count(*) > 1
) last
where earlier.id = last.id and earlier.place < last.place;

delete from staged_users earlier
using (
    select organization_id, id, max(place) as place from staged_users group by organization_id, id having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

delete from staged_signing_keys earlier
using (
    select organization_id, id, max(place) as place
    from staged_signing_keys
    group by organization_id, id
    having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

delete from staged_visitors earlier
using (
    select organization_id, id, max(place) as place
    from staged_visitors
    group by organization_id, id
    having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

delete from staged_contacts earlier
using (
    select organization_id, id, max(place) as place
    from staged_contacts
    group by organization_id, id
    having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

delete from staged_case_funnel_stages earlier
using (
    select organization_id, id, max(place) as place
    from staged_case_funnel_stages
    group by organization_id, id
    having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

delete from staged_cases earlier
using (
    select organization_id, id, max(place) as place from staged_cases group by organization_id, id having count(*) > 1
) last
where earlier.organization_id = last.organization_id and earlier.id = last.id and earlier.place < last.place;

-- name: begin_writing#
-- Loads take turns from here to their end, so that two never wait for each other's rows. The lock is 'case' in ASCII
-- and 1. Numbers and external identities may be taken by two rows meanwhile.
select pg_advisory_xact_lock(x'63617365'::integer, 1);
set constraints cases_case_number_unique, visitors_external_id_unique deferred;

-- name: write_organizations!
insert into organizations (organization_id, name, subscription_status, subscription_ends_at)
select id, name, subscription_status, subscription_ends_at
from staged_organizations
on conflict (organization_id) do update
set name = excluded.name,
    subscription_status = excluded.subscription_status,
    subscription_ends_at = excluded.subscription_ends_at
where (organizations.name, organizations.subscription_status, organizations.subscription_ends_at)
    is distinct from (excluded.name, excluded.subscription_status, excluded.subscription_ends_at);

-- name: write_users!
insert into users (organization_id, id, email, first_name, last_name, alias, title, avatar_url)
select organization_id, id, email, first_name, last_name, alias, title, avatar_url
from staged_users
on conflict (organization_id, id) do update
set email = excluded.email,
    first_name = excluded.first_name,
    last_name = excluded.last_name,
    alias = excluded.alias,
    title = excluded.title,
    avatar_url = excluded.avatar_url
where (users.email, users.first_name, users.last_name, users.alias, users.title, users.avatar_url)
    is distinct from (
        excluded.email, excluded.first_name, excluded.last_name, excluded.alias, excluded.title, excluded.avatar_url
    );

-- name: list_organizations_with_staged_keys
select distinct organization_id from staged_signing_keys order by organization_id;

-- name: lock_organization
-- Held by whoever adds a signing key, before the live ones are counted. It does not hold up rows that refer to the
-- organization.
select from organizations where organization_id = :organization_id for no key update;

-- name: list_known_signing_keys
-- The staged keys that exist already, beside what is stored of them.
select
    s.place,
    s.organization_id::text,
    s.id::text,
    s.algorithm,
    s.encrypted_secret,
    s.public_key,
    k.algorithm as stored_algorithm,
    k.encrypted_secret as stored_encrypted_secret,
    k.public_key as stored_public_key,
    s.retired_at is null and k.retired_at is not null as revived
from staged_signing_keys s
join signing_keys k on k.organization_id = s.organization_id and k.id = s.id
order by s.place;

-- name: write_signing_keys!
-- Of an existing key only the retirement is written, and only an earlier one than it has: the secret of the line is
-- the same, although it was encrypted anew. In the order in which rotate-secrets locks them.
insert into signing_keys (organization_id, id, algorithm, encrypted_secret, public_key, retired_at)
select organization_id, id, algorithm, encrypted_secret, public_key, retired_at
from staged_signing_keys
order by organization_id, id
on conflict (organization_id, id) do update
set retired_at = excluded.retired_at
where (signing_keys.retired_at is null and excluded.retired_at is not null)
    or (signing_keys.retired_at > statement_timestamp() and excluded.retired_at < signing_keys.retired_at);

-- name: find_key_beyond_limit
-- The last line that added a live key to an organization which has more of them now than it may.
select s.place, 'id'
from staged_signing_keys s
join signing_keys added
    on added.organization_id = s.organization_id
    and added.id = s.id
    and added.created_at = now()
where (added.retired_at is null or added.retired_at > statement_timestamp())
    and (
        select count(*)
        from signing_keys k
        where k.organization_id = added.organization_id
            and (k.retired_at is null or k.retired_at > statement_timestamp())
    ) > :maximum
order by s.place desc
limit 1;

-- name: write_visitors!
insert into visitors (organization_id, id, external_id)
select organization_id, id, external_id
from staged_visitors
where not deleted
on conflict (organization_id, id) do update
set external_id = excluded.external_id
where visitors.external_id is distinct from excluded.external_id;

-- name: write_contacts!
-- Times that a line leaves out stay as they are, and are the time of loading for a new contact.
insert into contacts (
    organization_id, id, visitor_id, first_name, last_name, email, phone, created_at, updated_at
)
select
    s.organization_id,
    s.id,
    s.visitor_id,
    s.first_name,
    s.last_name,
    s.email,
    s.phone,
    coalesce(s.created_at, c.created_at, now()),
    coalesce(s.updated_at, c.updated_at, now())
from staged_contacts s
left join contacts c on c.organization_id = s.organization_id and c.id = s.id
where not s.deleted
on conflict (organization_id, id) do update
set visitor_id = excluded.visitor_id,
    first_name = excluded.first_name,
    last_name = excluded.last_name,
    email = excluded.email,
    phone = excluded.phone,
    created_at = excluded.created_at,
    updated_at = excluded.updated_at
where (
        contacts.visitor_id, contacts.first_name, contacts.last_name, contacts.email, contacts.phone,
        contacts.created_at, contacts.updated_at
    ) is distinct from (
        excluded.visitor_id, excluded.first_name, excluded.last_name, excluded.email, excluded.phone,
        excluded.created_at, excluded.updated_at
    );

-- name: write_case_funnel_stages!
insert into case_funnel_stages (organization_id, id, name, position)
select organization_id, id, name, position
from staged_case_funnel_stages
where not deleted
on conflict (organization_id, id) do update
set name = excluded.name,
    position = excluded.position
where (case_funnel_stages.name, case_funnel_stages.position) is distinct from (excluded.name, excluded.position);

-- name: write_cases!
insert into cases (
    organization_id, id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, is_waiting, unread_message_count, created_at, updated_at,
    created_by_user_id, updated_by_user_id, case_funnel_stage_id
)
select
    organization_id, id, case_number, contact_id, owner_id, subject, description, status, priority,
    latest_messaging_channel, channel_priority, closed_at, is_waiting, unread_message_count, created_at, updated_at,
    created_by_user_id, updated_by_user_id, case_funnel_stage_id
from staged_cases
where not deleted
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
    case_funnel_stage_id = excluded.case_funnel_stage_id
where (
        cases.case_number, cases.contact_id, cases.owner_id, cases.subject, cases.description, cases.status,
        cases.priority, cases.latest_messaging_channel, cases.channel_priority, cases.closed_at, cases.is_waiting,
        cases.unread_message_count, cases.created_at, cases.updated_at, cases.created_by_user_id,
        cases.updated_by_user_id, cases.case_funnel_stage_id
    ) is distinct from (
        excluded.case_number, excluded.contact_id, excluded.owner_id, excluded.subject, excluded.description,
        excluded.status, excluded.priority, excluded.latest_messaging_channel, excluded.channel_priority,
        excluded.closed_at, excluded.is_waiting, excluded.unread_message_count, excluded.created_at,
        excluded.updated_at, excluded.created_by_user_id, excluded.updated_by_user_id, excluded.case_funnel_stage_id
    );

-- name: find_user_without_parent
select s.place, 'organization_id'
from staged_users s
where not exists (select from organizations o where o.organization_id = s.organization_id)
order by s.place
limit 1;

-- name: find_signing_key_without_parent
select s.place, 'organization_id'
from staged_signing_keys s
where not exists (select from organizations o where o.organization_id = s.organization_id)
order by s.place
limit 1;

-- name: find_visitor_without_parent
select s.place, 'organization_id'
from staged_visitors s
where not s.deleted
    and not exists (select from organizations o where o.organization_id = s.organization_id)
order by s.place
limit 1;

-- name: find_contact_without_parent
select s.place, parent.field
from staged_contacts s
cross join lateral (
    values
        ('organization_id', exists (select from organizations o where o.organization_id = s.organization_id)),
        (
            'visitor_id',
            s.visitor_id is null
            or exists (select from visitors v where v.organization_id = s.organization_id and v.id = s.visitor_id)
        )
) parent (field, exists)
where not s.deleted and not parent.exists
order by s.place
limit 1;

-- name: find_case_funnel_stage_without_parent
select s.place, 'organization_id'
from staged_case_funnel_stages s
where not s.deleted
    and not exists (select from organizations o where o.organization_id = s.organization_id)
order by s.place
limit 1;

-- name: find_case_without_parent
select s.place, parent.field
from staged_cases s
cross join lateral (
    values
        ('organization_id', exists (select from organizations o where o.organization_id = s.organization_id)),
        (
            'contact_id',
            s.contact_id is null
            or exists (select from contacts c where c.organization_id = s.organization_id and c.id = s.contact_id)
        ),
        (
            'owner_id',
            s.owner_id is null
            or exists (select from users u where u.organization_id = s.organization_id and u.id = s.owner_id)
        ),
        (
            'created_by_user_id',
            s.created_by_user_id is null
            or exists (select from users u where u.organization_id = s.organization_id and u.id = s.created_by_user_id)
        ),
        (
            'updated_by_user_id',
            s.updated_by_user_id is null
            or exists (select from users u where u.organization_id = s.organization_id and u.id = s.updated_by_user_id)
        ),
        (
            'case_funnel_stage_id',
            s.case_funnel_stage_id is null
            or exists (
                select
                from case_funnel_stages f
                where f.organization_id = s.organization_id and f.id = s.case_funnel_stage_id
            )
        )
) parent (field, exists)
where not s.deleted and not parent.exists
order by s.place
limit 1;

-- name: remove_cases!
delete from cases c
using staged_cases s
where s.deleted and c.organization_id = s.organization_id and c.id = s.id;

-- name: remove_contacts!
delete from contacts c
using staged_contacts s
where s.deleted and c.organization_id = s.organization_id and c.id = s.id;

-- name: remove_visitors!
delete from visitors v
using staged_visitors s
where s.deleted and v.organization_id = s.organization_id and v.id = s.id;

-- name: remove_case_funnel_stages!
delete from case_funnel_stages f
using staged_case_funnel_stages s
where s.deleted and f.organization_id = s.organization_id and f.id = s.id;

-- name: find_removed_contact_with_cases
select s.place, 'deleted'
from staged_contacts s
where s.deleted
    and exists (select from cases c where c.organization_id = s.organization_id and c.contact_id = s.id)
order by s.place
limit 1;

-- name: find_removed_visitor_with_contacts
select s.place, 'deleted'
from staged_visitors s
where s.deleted
    and exists (select from contacts c where c.organization_id = s.organization_id and c.visitor_id = s.id)
order by s.place
limit 1;

-- name: find_removed_case_funnel_stage_with_cases
select s.place, 'deleted'
from staged_case_funnel_stages s
where s.deleted
    and exists (select from cases c where c.organization_id = s.organization_id and c.case_funnel_stage_id = s.id)
order by s.place
limit 1;

-- name: check_numbers_and_identities!
set constraints cases_case_number_unique, visitors_external_id_unique immediate;

-- name: find_repeated_case_number
-- The first line of those that are the last to claim a number which another case has, too.
select last.place, 'case_number'
from (
    select distinct on (s.organization_id, s.case_number) s.place
    from staged_cases s
    join cases c on c.organization_id = s.organization_id and c.case_number = s.case_number and c.id <> s.id
    order by s.organization_id, s.case_number, s.place desc
) last
order by last.place
limit 1;

-- name: find_repeated_external_id
-- Likewise, of an external identity which another visitor has.
select last.place, 'external_id'
from (
    select distinct on (s.organization_id, s.external_id) s.place
    from staged_visitors s
    join visitors v on v.organization_id = s.organization_id and v.external_id = s.external_id and v.id <> s.id
    order by s.organization_id, s.external_id, s.place desc
) last
order by last.place
limit 1;

-- name: analyze_organizations!
analyze organizations;

-- name: analyze_users!
analyze users;

-- name: analyze_signing_keys!
analyze signing_keys;

-- name: analyze_visitors!
analyze visitors;

-- name: analyze_contacts!
analyze contacts;

-- name: analyze_case_funnel_stages!
analyze case_funnel_stages;

-- name: analyze_cases!
analyze cases;

-- The whole schema of the visitor cases service; read it from top to bottom.
--
-- Every table carries organization_id, and every primary key, unique constraint and foreign key
-- begins with it: no reference can cross organizations, and all rows of one organization can live
-- on one shard. Constraints are named, because the service maps errors by these names.
-- migrations/ upgrades an older database to this schema.

-- The version of the schema, in one row, and how many steps of the next migration are done.
create table schema_version (
    only_row boolean not null default true,
    version integer not null,
    steps_done integer not null default 0,
    constraint schema_version_pk primary key (only_row),
    constraint schema_version_has_one_row check (only_row)
);

-- A company that runs a contact centre.
create table organizations (
    organization_id uuid not null,
    name text not null,
    subscription_status text not null,
    subscription_ends_at timestamptz,
    constraint organizations_pk primary key (organization_id),
    constraint organizations_subscription_status_known check (subscription_status in ('active', 'inactive')),
    constraint organizations_times_in_range check (
        subscription_ends_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    ),
    constraint organizations_text_lengths check (char_length(name) <= 256)
);

-- The people who work for an organization: owners and authors of cases, holders of API tokens.
create table users (
    organization_id uuid not null,
    id uuid not null,
    email text,
    first_name text,
    last_name text,
    full_name text generated always as (
        nullif(
            coalesce(first_name, '')
            || case when first_name <> '' and last_name <> '' then ' ' else '' end
            || coalesce(last_name, ''),
            ''
        )
    ) stored,
    alias text,
    title text,
    avatar_url text,
    -- Read only by the previous release; to be dropped. The same in the three tables below.
    content_hash bigint not null generated always as (
        hash_array_extended(array[id], 1)
        # hash_array_extended(array[email, first_name, last_name, alias, title, avatar_url] collate "C", 2)
    ) stored,
    constraint users_pk primary key (organization_id, id),
    constraint users_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint users_text_lengths check (
        char_length(email) <= 256
        and char_length(first_name) <= 256
        and char_length(last_name) <= 256
        and char_length(alias) <= 256
        and char_length(title) <= 256
        and char_length(avatar_url) <= 2048
    )
);

-- The tokens with which an organization's backend authenticates. Only a token's SHA-256 is stored. The time of last use
-- is recorded now and then, to the minute or so.
create table api_tokens (
    organization_id uuid not null,
    id uuid not null,
    user_id uuid not null,
    token_hash bytea not null,
    description text,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    scopes text[] not null default '{visitors:read}',
    constraint api_tokens_pk primary key (organization_id, id),
    constraint api_tokens_hash_unique unique (organization_id, token_hash),
    constraint api_tokens_hash_is_sha256 check (octet_length(token_hash) = 32),
    constraint api_tokens_scopes_known check (
        scopes <@ '{visitors:read,visitors:write,cases:read,cases:write}'::text[] and cardinality(scopes) > 0
    ),
    constraint api_tokens_user_fk foreign key (organization_id, user_id)
        references users (organization_id, id),
    constraint api_tokens_text_lengths check (char_length(description) <= 256)
);

-- The keys that verify visitors' JWTs. The id is the token's "kid". An HMAC secret is stored encrypted
-- with CASES_SECRET_KEY; of an asymmetric key only the public half is stored.
create table signing_keys (
    organization_id uuid not null,
    id uuid not null,
    algorithm text not null,
    encrypted_secret text,
    public_key text,
    created_at timestamptz not null default now(),
    retired_at timestamptz,
    last_used_at timestamptz,
    constraint signing_keys_pk primary key (organization_id, id),
    constraint signing_keys_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint signing_keys_algorithm_known check (
        algorithm in ('HS256', 'HS384', 'HS512', 'RS256', 'RS384', 'RS512', 'ES256', 'ES384', 'EdDSA')
    ),
    constraint signing_keys_material_fits_algorithm check (
        (encrypted_secret is not null) = (algorithm like 'HS%')
        and (public_key is not null) = (algorithm not like 'HS%')
    ),
    constraint signing_keys_text_lengths check (
        char_length(encrypted_secret) <= 8192
        and char_length(public_key) <= 8192
    )
);

-- A signed-in customer, as the organization's own systems know them. external_id is compared by its bytes.
create table visitors (
    organization_id uuid not null,
    id uuid not null,
    external_id text collate "C" not null,
    constraint visitors_pk primary key (organization_id, id),
    constraint visitors_external_id_unique unique (organization_id, external_id)
        deferrable initially immediate,
    constraint visitors_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint visitors_external_id_length check (char_length(external_id) between 1 and 256)
);

-- One address or number of a person: from the chat, from the phone call, from an import.
-- The contacts assigned to one visitor are one person.
create table contacts (
    organization_id uuid not null,
    id uuid not null,
    visitor_id uuid,
    first_name text,
    last_name text,
    full_name text generated always as (
        nullif(
            coalesce(first_name, '')
            || case when first_name <> '' and last_name <> '' then ' ' else '' end
            || coalesce(last_name, ''),
            ''
        )
    ) stored,
    email text,
    phone text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    content_hash bigint not null generated always as (
        hash_array_extended(array[id], 1)
        # hash_array_extended(array[first_name, last_name, email, phone] collate "C", 2)
        # hash_array_extended(array[created_at, updated_at], 3)
    ) stored,
    constraint contacts_pk primary key (organization_id, id),
    constraint contacts_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint contacts_visitor_fk foreign key (organization_id, visitor_id)
        references visitors (organization_id, id),
    constraint contacts_times_in_range check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and updated_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    ),
    constraint contacts_text_lengths check (
        char_length(first_name) <= 256
        and char_length(last_name) <= 256
        and char_length(email) <= 256
        and char_length(phone) <= 256
    )
);

-- All contacts of a visitor: the page query starts here.
create index contacts_of_visitor on contacts (organization_id, visitor_id, id);

-- The steps of an organization's workflow of cases.
create table case_funnel_stages (
    organization_id uuid not null,
    id uuid not null,
    name text not null,
    position integer not null,
    content_hash bigint not null generated always as (
        hash_array_extended(array[id], 1)
        # hash_array_extended(array[name] collate "C", 2)
        # hash_array_extended(array[position], 3)
    ) stored,
    constraint case_funnel_stages_pk primary key (organization_id, id),
    constraint case_funnel_stages_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint case_funnel_stages_text_lengths check (char_length(name) <= 256)
);

create table cases (
    organization_id uuid not null,
    id uuid not null,
    case_number text collate "C" not null,
    contact_id uuid,
    owner_id uuid,
    subject text,
    description text,
    status text not null,
    priority smallint not null,
    latest_messaging_channel text,
    channel_priority smallint,
    is_closed boolean not null generated always as (status = 'Closed') stored,
    closed_at timestamptz,
    is_waiting boolean not null default false,
    unread_message_count integer not null default 0,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    created_by_user_id uuid,
    updated_by_user_id uuid,
    case_funnel_stage_id uuid,
    -- The channel as a number, which an index can also look up if there is no channel.
    channel_number smallint not null generated always as (
        case latest_messaging_channel when 'email' then 1 when 'whatsapp' then 2 when 'webchat' then 3 else 0 end
    ) stored,
    content_hash bigint not null generated always as (
        hash_array_extended(
            array[id, contact_id, owner_id, created_by_user_id, updated_by_user_id, case_funnel_stage_id], 1
        )
        # hash_array_extended(
            array[case_number, subject, description, status, latest_messaging_channel] collate "C", 2
        )
        # hash_array_extended(array[closed_at, created_at, updated_at], 3)
        # hash_array_extended(array[priority, channel_priority, unread_message_count, is_waiting::integer], 4)
    ) stored,
    -- Messages from users that the visitor has not read.
    visitor_unread_message_count integer not null default 0,
    constraint cases_pk primary key (organization_id, id),
    constraint cases_case_number_unique unique (organization_id, case_number)
        deferrable initially immediate,
    constraint cases_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint cases_contact_fk foreign key (organization_id, contact_id)
        references contacts (organization_id, id),
    constraint cases_owner_fk foreign key (organization_id, owner_id)
        references users (organization_id, id),
    constraint cases_created_by_user_fk foreign key (organization_id, created_by_user_id)
        references users (organization_id, id),
    constraint cases_updated_by_user_fk foreign key (organization_id, updated_by_user_id)
        references users (organization_id, id),
    constraint cases_funnel_stage_fk foreign key (organization_id, case_funnel_stage_id)
        references case_funnel_stages (organization_id, id),
    constraint cases_case_number_length check (char_length(case_number) between 1 and 256),
    constraint cases_status_known check (status in ('Open', 'In Progress', 'Pending', 'Closed')),
    constraint cases_closed_at_fits_status check ((status = 'Closed') = (closed_at is not null)),
    constraint cases_priority_known check (priority between 1 and 5),
    constraint cases_channel_known check (latest_messaging_channel in ('email', 'whatsapp', 'webchat')),
    constraint cases_channel_priority_known check (channel_priority between 1 and 4),
    constraint cases_unread_message_count_not_negative check (unread_message_count >= 0),
    constraint cases_visitor_unread_message_count_not_negative check (visitor_unread_message_count >= 0),
    constraint cases_times_in_range check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and updated_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and closed_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    ),
    constraint cases_text_lengths check (
        char_length(subject) <= 1000
        and char_length(description) <= 65536
    )
);

-- One index for each sort column, in the order of the page query, which takes the next keys of every
-- contact from it. Read backwards it serves the descending order. The second also holds every column that the summary
-- counts and filters by, so the summary need not read the cases themselves.
create index cases_of_contact_by_creation on cases (organization_id, contact_id, created_at, id);
create index cases_of_contact_by_update on cases (organization_id, contact_id, updated_at, id)
    include (
        created_at, status, priority, channel_number, is_waiting, unread_message_count, visitor_unread_message_count
    );

-- The same for the cases of one status, one priority, and one channel: these serve filters that match few of a
-- visitor's many cases.
create index cases_of_contact_by_status_and_creation on cases (organization_id, contact_id, status, created_at, id);
create index cases_of_contact_by_status_and_update on cases (organization_id, contact_id, status, updated_at, id);
create index cases_of_contact_by_priority_and_creation on cases (organization_id, contact_id, priority, created_at, id);
create index cases_of_contact_by_priority_and_update on cases (organization_id, contact_id, priority, updated_at, id);
create index cases_of_contact_by_channel_and_creation
    on cases (organization_id, contact_id, channel_number, created_at, id);
create index cases_of_contact_by_channel_and_update
    on cases (organization_id, contact_id, channel_number, updated_at, id);

-- The cases of an organization, with any contact or none, for the organization itself.
create index cases_of_organization_by_creation on cases (organization_id, created_at, id);
create index cases_of_organization_by_update on cases (organization_id, updated_at, id);

-- The conversations of a case, each on one channel.
create table activities (
    organization_id uuid not null,
    id uuid not null,
    case_id uuid not null,
    channel text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    ended_at timestamptz,
    -- Notes are counted separately: a visitor must not be able to tell that there are any.
    message_count integer not null default 0,
    private_message_count integer not null default 0,
    -- Opened by a note. Messages that a visitor sees never go into such an activity.
    is_private boolean not null default false,
    constraint activities_pk primary key (organization_id, id),
    -- The foreign key of messages checks their case by this.
    constraint activities_case_unique unique (organization_id, id, case_id),
    constraint activities_case_fk foreign key (organization_id, case_id)
        references cases (organization_id, id) on delete cascade,
    constraint activities_channel_known check (channel in ('telephony', 'webchat', 'whatsapp', 'email')),
    constraint activities_message_counts_not_negative check (message_count >= 0 and private_message_count >= 0),
    constraint activities_times_in_range check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and updated_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and ended_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    )
);

create index activities_of_case on activities (organization_id, case_id, created_at, id);

-- The messages of activities. A private message is a note among users.
create table messages (
    organization_id uuid not null,
    id uuid not null,
    case_id uuid not null,
    activity_id uuid not null,
    sender_type text not null,
    sender_user_id uuid,
    text text not null,
    created_at timestamptz not null,
    -- The time when the other side read it.
    read_at timestamptz,
    is_private boolean not null,
    constraint messages_pk primary key (organization_id, id),
    constraint messages_activity_fk foreign key (organization_id, activity_id, case_id)
        references activities (organization_id, id, case_id) on update cascade on delete cascade,
    constraint messages_sender_user_fk foreign key (organization_id, sender_user_id)
        references users (organization_id, id),
    constraint messages_sender_type_known check (sender_type in ('visitor', 'user', 'system')),
    constraint messages_sender_user_fits_type check (sender_user_id is null or sender_type = 'user'),
    constraint messages_of_visitors_not_private check (sender_type <> 'visitor' or not is_private),
    constraint messages_text_length check (char_length(text) between 1 and 10000),
    constraint messages_times_in_range check (
        created_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
        and read_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    )
);

-- Pages of a case's messages: one stream for the visitor, two for the organization.
create index messages_of_case on messages (organization_id, case_id, is_private, created_at, id);
-- The messages of an activity are removed with it.
create index messages_of_activity on messages (organization_id, activity_id);
-- One side's messages that the other has not read.
create index unread_messages_of_case on messages (organization_id, case_id, sender_type, created_at, id)
    where read_at is null and not is_private;

-- The last position of an organization's events, and the one up to which they were pruned. A transaction that writes an
-- event locks this row until it commits, so positions grow in commit order and leave no gap that fills later.
create table event_positions (
    organization_id uuid not null,
    last_position bigint not null,
    pruned_position bigint not null default 0,
    constraint event_positions_pk primary key (organization_id),
    constraint event_positions_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint event_positions_in_order check (0 <= pruned_position and pruned_position <= last_position)
);

-- The events of visitors' actions, for the system that holds the cases. An event outlives its case.
create table events (
    organization_id uuid not null,
    position bigint not null,
    type text not null,
    created_at timestamptz not null,
    external_id text collate "C" not null,
    case_id uuid not null,
    case_number text collate "C" not null,
    message_id uuid,
    constraint events_pk primary key (organization_id, position),
    constraint events_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint events_type_known check (type in ('message_created', 'case_closed', 'case_reopened', 'case_read')),
    constraint events_message_fits_type check ((message_id is not null) = (type = 'message_created')),
    constraint events_text_lengths check (char_length(external_id) <= 256 and char_length(case_number) <= 256)
);

-- For exports and erasures, which look up a visitor's events.
create index events_of_visitor on events (organization_id, external_id);

-- The results of an organization's latest loads and imports; each new one removes the oldest.
-- `written` and `removed` count changed rows, `stale` and `wrong` count lines; they are null in runs of older versions, if
-- a load covered several organizations. A run that was refused as a whole stored nothing.
create table import_runs (
    organization_id uuid not null,
    id uuid not null default gen_random_uuid(),
    finished_at timestamptz not null default clock_timestamp(),
    source text not null,
    api_token_id uuid,
    is_stored boolean not null,
    lines bigint not null,
    written bigint,
    removed bigint,
    stale bigint,
    wrong bigint,
    duration_ms bigint not null,
    constraint import_runs_pk primary key (organization_id, finished_at, id),
    constraint import_runs_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint import_runs_source_known check (source in ('load', 'import')),
    constraint import_runs_counts_not_negative check (
        least(lines, written, removed, stale, wrong, duration_ms) >= 0
    )
);

-- The rows that were removed, with the time in their own system, so that a late delivery does not bring them back. The
-- removal may have arrived before anything else of the row or of the organization. Of activities it is the time of the
-- removal here, and their messages are what does not come back.
create table removed_rows (
    organization_id uuid not null,
    record_type text not null,
    id uuid not null,
    updated_at timestamptz not null,
    removed_at timestamptz not null default now(),
    constraint removed_rows_pk primary key (organization_id, record_type, id),
    constraint removed_rows_type_known check (record_type in ('contact', 'case', 'activity')),
    constraint removed_rows_times_in_range check (
        updated_at between '0001-01-01 00:00:00+00' and '9999-12-31 23:59:59.999999+00'
    )
);

-- The keys that hash external ids of erased persons: 32 random bytes for each organization that has erased anybody.
create table erasure_keys (
    organization_id uuid not null,
    key bytea not null,
    constraint erasure_keys_pk primary key (organization_id),
    constraint erasure_keys_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint erasure_keys_length check (octet_length(key) = 32)
);

-- Visitors whose data was erased, by the HMAC-SHA256 of their external id, so that no feed brings them back.
create table erased_visitors (
    organization_id uuid not null,
    external_id_hash bytea not null,
    erased_at timestamptz not null,
    constraint erased_visitors_pk primary key (organization_id, external_id_hash),
    constraint erased_visitors_key_fk foreign key (organization_id)
        references erasure_keys (organization_id),
    constraint erased_visitors_hash_is_sha256 check (octet_length(external_id_hash) = 32)
);

-- The nested objects of a case. Read only by the previous release; the five views are to be dropped.
create view case_contacts with (security_invoker = true) as
select
    organization_id as "contact.organization_id",
    id as "contact.id",
    first_name as "contact.first_name",
    last_name as "contact.last_name",
    full_name as "contact.full_name",
    email as "contact.email",
    phone as "contact.phone",
    created_at as "contact.created_at",
    updated_at as "contact.updated_at",
    content_hash as "contact.content_hash"
from contacts;

create view case_owners with (security_invoker = true) as
select
    organization_id as "owner.organization_id",
    id as "owner.id",
    email as "owner.email",
    first_name as "owner.first_name",
    last_name as "owner.last_name",
    full_name as "owner.full_name",
    alias as "owner.alias",
    title as "owner.title",
    avatar_url as "owner.avatar_url",
    content_hash as "owner.content_hash"
from users;

create view case_authors with (security_invoker = true) as
select
    organization_id as "created_by_user.organization_id",
    id as "created_by_user.id",
    email as "created_by_user.email",
    first_name as "created_by_user.first_name",
    last_name as "created_by_user.last_name",
    full_name as "created_by_user.full_name",
    alias as "created_by_user.alias",
    title as "created_by_user.title",
    avatar_url as "created_by_user.avatar_url",
    content_hash as "created_by_user.content_hash"
from users;

create view case_editors with (security_invoker = true) as
select
    organization_id as "updated_by_user.organization_id",
    id as "updated_by_user.id",
    email as "updated_by_user.email",
    first_name as "updated_by_user.first_name",
    last_name as "updated_by_user.last_name",
    full_name as "updated_by_user.full_name",
    alias as "updated_by_user.alias",
    title as "updated_by_user.title",
    avatar_url as "updated_by_user.avatar_url",
    content_hash as "updated_by_user.content_hash"
from users;

create view case_stages with (security_invoker = true) as
select
    organization_id as "case_funnel_stage.organization_id",
    id as "case_funnel_stage.id",
    name as "case_funnel_stage.name",
    position as "case_funnel_stage.position",
    content_hash as "case_funnel_stage.content_hash"
from case_funnel_stages;

-- Formerly regular feeds that have stopped: silent for ten minutes and for five times the usual pause between the
-- latest twenty. After thirty days a feed counts as ended.
create view late_feeds with (security_invoker = true) as
select
    o.organization_id,
    max(newest.finished_at) as last_at,
    percentile_cont(0.5) within group (order by newest.pause) as usual_pause
from organizations o
cross join lateral (
    select run.finished_at, run.finished_at - lag(run.finished_at) over (order by run.finished_at) as pause
    from (
        select i.finished_at
        from import_runs i
        where i.organization_id = o.organization_id
            and i.is_stored
            and i.finished_at > now() - interval '30 days'
        order by i.finished_at desc
        limit 20
    ) run
) newest
where o.subscription_status = 'active'
group by o.organization_id
having count(newest.pause) >= 5
    and now() - max(newest.finished_at) > greatest(
        5 * percentile_cont(0.5) within group (order by newest.pause), interval '10 minutes'
    );

-- Only their number, for a role that sees one organization at a time. The setting lasts until the end of the
-- transaction, and shows no more to a role that no policy allows.
create function count_late_feeds() returns bigint
    language sql security definer
    begin atomic
        select set_config('cases.every_organization', 'on', true);
        select count(*) from late_feeds;
    end;
revoke execute on function count_late_feeds() from public;

-- Row security, on top of the predicate in every statement: a statement that forgets its organization finds nothing.
-- It is forced, so it applies to the owner of the tables, too. A transaction names its organization in the setting
-- cases.organization_id (after a transaction such a setting is '' and not null). Only the owner of the schema, and
-- roles that init-db adds to the policy, may see every organization, and must ask for it. The setting is read in a
-- subquery, and so once per statement instead of once for each look-up in an index.

do $$
declare
    protected_table text;
begin
    foreach protected_table in array array[
        'organizations', 'users', 'api_tokens', 'signing_keys', 'visitors', 'contacts', 'case_funnel_stages', 'cases',
        'activities', 'messages', 'event_positions', 'events', 'import_runs', 'removed_rows', 'erasure_keys',
        'erased_visitors'
    ] loop
        execute format('alter table %I enable row level security, force row level security', protected_table);
        execute format(
            'create policy own_organization on %I using (organization_id ='
            ' (select nullif(current_setting(''cases.organization_id'', true), '''')::uuid))',
            protected_table
        );
        execute format(
            'create policy administration on %I to current_user'
            ' using (current_setting(''cases.every_organization'', true) = ''on'')',
            protected_table
        );
    end loop;
end
$$;

-- Notes among users are hidden from every statement whose transaction does not ask for them, and no transaction that
-- answers a visitor does. A session that sees every organization sees their notes: a dump without them would be no
-- backup.
create policy private_notes on activities as restrictive using (
    not is_private
    or (select current_setting('cases.private_notes', true)) = 'shown'
    or (select current_setting('cases.every_organization', true)) = 'on'
);
create policy private_notes on messages as restrictive using (
    not is_private
    or (select current_setting('cases.private_notes', true)) = 'shown'
    or (select current_setting('cases.every_organization', true)) = 'on'
);

-- What the planner is told of organizations: a row that an id, a contact or a case finds is the organization's, so
-- organization_id narrows nothing down further. Otherwise, where most organizations have a row or two, it expects as few
-- of any, and rather reads all rows of an organization than look up one.
alter table users alter column organization_id set (n_distinct = 1);
alter table api_tokens alter column organization_id set (n_distinct = 1);
alter table signing_keys alter column organization_id set (n_distinct = 1);
alter table visitors alter column organization_id set (n_distinct = 1);
alter table contacts alter column organization_id set (n_distinct = 1);
alter table case_funnel_stages alter column organization_id set (n_distinct = 1);
alter table cases alter column organization_id set (n_distinct = 1);
alter table activities alter column organization_id set (n_distinct = 1);
alter table messages alter column organization_id set (n_distinct = 1);
alter table events alter column organization_id set (n_distinct = 1);
alter table import_runs alter column organization_id set (n_distinct = 1);
alter table removed_rows alter column organization_id set (n_distinct = 1);
alter table erased_visitors alter column organization_id set (n_distinct = 1);

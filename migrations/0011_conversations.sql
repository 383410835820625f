-- What is in a case, and what visitors did about it. New tables, which nobody reads yet, and a column of the cases that
-- takes no time. Nobody is kept from the cases for longer than a moment.

-- step: transaction
alter table cases add column visitor_unread_message_count integer not null default 0;
alter table cases
    add constraint cases_visitor_unread_message_count_not_negative check (visitor_unread_message_count >= 0) not valid;

-- step: tables
-- What a case contains: conversations, each on one channel.
create table activities (
    organization_id uuid not null,
    id uuid not null,
    case_id uuid not null,
    channel text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    ended_at timestamptz,
    -- Notes are counted by themselves: a visitor must not be able to tell that there are any.
    message_count integer not null default 0,
    private_message_count integer not null default 0,
    -- Opened by a note. Messages that a visitor sees never go into it.
    is_private boolean not null default false,
    constraint activities_pk primary key (organization_id, id),
    -- What the case of a message is checked by.
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

-- What was said. A private message is a note among users.
create table messages (
    organization_id uuid not null,
    id uuid not null,
    case_id uuid not null,
    activity_id uuid not null,
    sender_type text not null,
    sender_user_id uuid,
    text text not null,
    created_at timestamptz not null,
    -- When the other side read it.
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
-- The messages of an activity go with it.
create index messages_of_activity on messages (organization_id, activity_id);
-- What one side wrote and the other has not read.
create index unread_messages_of_case on messages (organization_id, case_id, sender_type, created_at, id)
    where read_at is null and not is_private;

-- Where the events of an organization end, and up to where they were pruned. A transaction that writes an event holds
-- this row until it commits, so that positions grow in the order of the commits and leave no gap that fills later.
create table event_positions (
    organization_id uuid not null,
    last_position bigint not null,
    pruned_position bigint not null default 0,
    constraint event_positions_pk primary key (organization_id),
    constraint event_positions_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint event_positions_in_order check (0 <= pruned_position and pruned_position <= last_position)
);

-- What visitors did, for the system that holds the cases. An event outlives its case.
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

-- An export and an erasure find a visitor's events.
create index events_of_visitor on events (organization_id, external_id);

do $$
declare
    protected_table text;
begin
    foreach protected_table in array array[
        'activities', 'messages', 'event_positions', 'events'
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

-- step: outside
alter table cases validate constraint cases_visitor_unread_message_count_not_negative;
drop index concurrently if exists cases_of_contact_by_update_and_counts;
create index concurrently cases_of_contact_by_update_and_counts
    on cases (organization_id, contact_id, updated_at, id)
    include (
        created_at, status, priority, channel_number, is_waiting, unread_message_count, visitor_unread_message_count
    );

-- step: transaction
drop index cases_of_contact_by_update;
alter index cases_of_contact_by_update_and_counts rename to cases_of_contact_by_update;

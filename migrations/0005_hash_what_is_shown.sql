-- What an ETag is made of, so that a page that has not changed is not sent to find that out. Each table is written anew,
-- and nobody reads or writes it meanwhile: see Upgrade the service in docs/day-two.md for how long that takes.
alter table users add column content_hash bigint not null generated always as (
    hash_array_extended(array[id], 1)
    # hash_array_extended(array[email, first_name, last_name, alias, title, avatar_url] collate "C", 2)
) stored;

alter table contacts add column content_hash bigint not null generated always as (
    hash_array_extended(array[id], 1)
    # hash_array_extended(array[first_name, last_name, email, phone] collate "C", 2)
    # hash_array_extended(array[created_at, updated_at], 3)
) stored;

alter table case_funnel_stages add column content_hash bigint not null generated always as (
    hash_array_extended(array[id], 1)
    # hash_array_extended(array[name] collate "C", 2)
    # hash_array_extended(array[position], 3)
) stored;

alter table cases add column content_hash bigint not null generated always as (
    hash_array_extended(
        array[id, contact_id, owner_id, created_by_user_id, updated_by_user_id, case_funnel_stage_id], 1
    )
    # hash_array_extended(
        array[case_number, subject, description, status, latest_messaging_channel] collate "C", 2
    )
    # hash_array_extended(array[closed_at, created_at, updated_at], 3)
    # hash_array_extended(array[priority, channel_priority, unread_message_count, is_waiting::integer], 4)
) stored;

create or replace view case_contacts with (security_invoker = true) as
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

create or replace view case_owners with (security_invoker = true) as
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

create or replace view case_authors with (security_invoker = true) as
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

create or replace view case_editors with (security_invoker = true) as
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

create or replace view case_stages with (security_invoker = true) as
select
    organization_id as "case_funnel_stage.organization_id",
    id as "case_funnel_stage.id",
    name as "case_funnel_stage.name",
    position as "case_funnel_stage.position",
    content_hash as "case_funnel_stage.content_hash"
from case_funnel_stages;

-- The setting is read once for a statement, instead of once for each look-up in an index.
do $$
begin
alter policy own_organization on organizations
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on users
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on api_tokens
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on signing_keys
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on visitors
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on contacts
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on case_funnel_stages
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
alter policy own_organization on cases
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
exception
    when feature_not_supported then null; -- Citus takes no subqueries there
end
$$;

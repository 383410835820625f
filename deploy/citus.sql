-- Turns the schema into Citus tables, distributed by organization: every statement of a request then goes to one shard.
--
-- Once, on the coordinator, after init-db and before the first load:
--     psql --set ON_ERROR_STOP=1 --single-transaction --file deploy/citus.sql "$DATABASE_URL"
-- Run again it fails at the first table and changes nothing. What has to be known besides is in docs/scaling.md.

create extension if not exists citus;

-- Tables with foreign keys between them, in one transaction: their shards are made over one connection to each node.
set local citus.multi_shard_modify_mode = 'sequential';

-- Policies of distributed tables have no subqueries; without one the setting is read for each look-up in an index.
alter policy own_organization on organizations
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on users
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on api_tokens
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on signing_keys
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on visitors
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on contacts
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on case_funnel_stages
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on cases
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on activities
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on messages
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on event_positions
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on events
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy private_notes on activities using (
    not is_private
    or current_setting('cases.private_notes', true) = 'shown'
    or current_setting('cases.every_organization', true) = 'on'
);
alter policy private_notes on messages using (
    not is_private
    or current_setting('cases.private_notes', true) = 'shown'
    or current_setting('cases.every_organization', true) = 'on'
);
alter policy own_organization on import_runs
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on removed_rows
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on erasure_keys
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);
alter policy own_organization on erased_visitors
    using (organization_id = nullif(current_setting('cases.organization_id', true), '')::uuid);

-- One row that belongs to nobody. A copy on each node lets each node answer /readyz.
select create_reference_table('schema_version');

-- What all others refer to comes first: a foreign key of a distributed table has to lead to one that is distributed
-- already, and in the same way. The number of shards is the largest number of nodes that this can grow to, and a
-- hundred and more organizations share a shard; it cannot be changed cheaply later.
select create_distributed_table('organizations', 'organization_id', shard_count => 128);

-- An organization's rows of every table lie on one node: joins and foreign keys never leave it. Parents come first.
select create_distributed_table('users', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('api_tokens', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('signing_keys', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('visitors', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('contacts', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('case_funnel_stages', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('cases', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('activities', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('messages', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('event_positions', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('events', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('import_runs', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('removed_rows', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('erasure_keys', 'organization_id', colocate_with => 'organizations');
select create_distributed_table('erased_visitors', 'organization_id', colocate_with => 'organizations');

-- The views stay what they are: the coordinator puts their tables into a statement before it looks for shards.

-- A session's settings, and its role's privileges.

-- name: get_session
select lower(name), setting
from pg_settings
where lower(name) = any(:names);

-- name: complete_session
-- Settings that only an existing session can take: those that older servers do not know; that temporary tables hide
-- none of the schema's tables, wherever those are; and that a role which is read-only by default may write. If the
-- database or the server is read-only by default, that is intended and stays.
select set_config('transaction_timeout', '0', false)
where current_setting('transaction_timeout', true) <> '0'
union all
select set_config('restrict_nonsystem_relation_kind', '', false)
where current_setting('restrict_nonsystem_relation_kind', true) <> ''
union all
select set_config('search_path', current_setting('search_path') || ', pg_temp', false)
where current_schema() is not null and strpos(current_setting('search_path'), 'pg_temp') = 0
union all
select set_config(name, 'off', false)
from pg_settings
where name = 'default_transaction_read_only' and setting = 'on' and source in ('user', 'database user');

-- name: get_server
-- Whether the server follows another one; the process that answers, which behind a pooler differs from the one named at
-- the start; whether the database uses Citus, which passes statements on to other servers; and whether this role may
-- call what deploy/citus.sql makes.
select
    pg_is_in_recovery(),
    pg_backend_pid(),
    to_regclass('pg_catalog.pg_dist_partition') is not null,
    coalesce(
        has_function_privilege(
            to_regprocedure('ask_organization(uuid, boolean, text, text, text[], text[])'), 'execute'
        ),
        false
    );

-- name: is_citus
select to_regclass('pg_catalog.pg_dist_partition') is not null;

-- name: hand_settings_on!
-- From here on until the end of the transaction, Citus passes each SET LOCAL on to its nodes. If one came in a text
-- with other statements, those would be passed on, too.
set local citus.propagate_set_commands = 'local';

-- name: see_every_organization!
set local cases.every_organization = 'on';

-- name: limit_waiting!
-- For a row or table that somebody else holds. Not with set_config(), which Citus does not hand on.
set local lock_timeout = :milliseconds;

-- name: name_organization
-- The organization of the transaction, for row security, until its end.
select set_config('cases.organization_id', :organization_id, true);

-- name: show_notes
-- For the rest of the transaction: an organization sees its users' notes.
select set_config('cases.private_notes', 'shown', true);

-- name: plan_with_values
-- For the rest of the transaction: Citus finds the node for a call by the organization's value, not by a parameter.
select set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: ask_organization
-- One call for the node of an organization, on Citus: see cases_service/database/node_call.py and deploy/citus.sql.
select ask_organization(
    :organization_id::uuid, :notes::boolean, :name::text, :statement::text, :tables::text[], :parameters::text[]
);

-- name: find_shard
-- Where Citus has an organization: the node, the shard's number, and its name of each of the tables.
select
    p.nodename,
    p.nodeport,
    p.shardid,
    array(
        select shard_name(t.name::regclass, get_shard_id_for_distribution_column(t.name, :organization_id::uuid))
        from unnest(:tables::text[]) with ordinality as t (name, place)
        order by t.place
    )
from pg_dist_shard_placement p
where p.shardid = get_shard_id_for_distribution_column('organizations', :organization_id::uuid);

-- name: has_shard
-- Whether this node of Citus has a shard.
select exists (
    select
    from pg_dist_placement p
    where p.shardid = :shard::bigint and p.groupid = (select l.groupid from pg_dist_local_group l)
);

-- name: is_bound_by_row_security
-- False for a superuser, a role that bypasses row security, and the owner of tables that do not force it.
-- Null without a schema.
select bool_and(row_security_active(oid))
from pg_class
where relnamespace = (select relnamespace from pg_class where oid = to_regclass('schema_version'))
    and relrowsecurity;

-- name: get_clock
select extract(epoch from clock_timestamp())::double precision;

-- name: get_role
select rolname, rolsuper, rolbypassrls
from pg_roles
where rolname = current_user;

-- name: list_missing_rights
-- The grants of list_service_grants that this role lacks, and whether the service can do without them.
select 'select on ' || name as missing, false as is_dispensable
from unnest(
    array[
        'schema_version', 'organizations', 'users', 'api_tokens', 'signing_keys', 'visitors', 'contacts',
        'case_funnel_stages', 'cases', 'activities', 'messages', 'event_positions', 'events', 'import_runs'
    ]
) as served (name)
where to_regclass(name) is null or not has_table_privilege(to_regclass(name), 'select')
union all
select 'update (last_used_at) on ' || name, true
from unnest(array['api_tokens', 'signing_keys']) as recorded (name)
where to_regclass(name) is null or not has_column_privilege(to_regclass(name), 'last_used_at', 'update')
union all
select 'execute on count_late_feeds()', true
where to_regprocedure('count_late_feeds()') is null
    or not has_function_privilege(to_regprocedure('count_late_feeds()'), 'execute');

-- name: list_missing_writer_rights
-- The grants of list_writer_grants that this role lacks; and the server, if it takes no writes.
select 'select on ' || name as missing
from unnest(
    array[
        'schema_version', 'users', 'visitors', 'contacts', 'case_funnel_stages', 'cases', 'removed_rows',
        'erasure_keys', 'erased_visitors'
    ]
) as seen (name)
where to_regclass(name) is null or not has_table_privilege(to_regclass(name), 'select')
union all
select right_ || ' on ' || name
from unnest(array['cases', 'activities', 'messages']) as written (name)
cross join unnest(array['insert', 'update', 'delete']) as wanted (right_)
where to_regclass(name) is null or not has_table_privilege(to_regclass(name), right_)
union all
select 'a server that takes writes'
where pg_is_in_recovery();

-- name: sees_every_organization
-- Whether this session sees all rows: row security does not apply to it, or it may ask for them and has done so.
select not row_security_active('signing_keys')
    or (
        coalesce(current_setting('cases.every_organization', true), '') = 'on'
        and exists (
            select
            from pg_policies p
            cross join unnest(p.roles) as member (name)
            where p.schemaname = current_schema()
                and p.tablename = 'signing_keys'
                and p.policyname = 'administration'
                and pg_has_role(member.name, 'usage')
        )
    );

-- name: list_unknown_to_the_planner
-- Tables that were never analyzed. Autovacuum leaves small ones alone, and they are planned well all the same.
select relname
from pg_class
where relnamespace = (select relnamespace from pg_class where oid = to_regclass('schema_version'))
    and relkind = 'r'
    and relname <> 'schema_version'
    and reltuples < 0
    and pg_relation_size(oid) > 128 * 1024
order by relname;

-- The version of the schema, and its upgrade.

-- name: get_schema_version
select version from schema_version;

-- name: has_schema
select to_regclass('schema_version') is not null;

-- name: lock_schema
-- One init-db at a time in a database; the number is the service's own.
select pg_try_advisory_lock(7215398844120);

-- name: unlock_schema
select pg_advisory_unlock(7215398844120);

-- name: list_others_at_work
-- The session that has the lock of lock_schema, whose number is stored in two halves.
select l.virtualtransaction, format('another init-db, process %s', l.pid)
from pg_locks l
where l.locktype = 'advisory'
    and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32 | l.objid::bigint) = 7215398844120
    and l.objsubid = 1;

-- name: list_holders
-- The sessions that use tables of the service, apart from this one. Their queries are not shown.
select
    l.virtualtransaction,
    format(
        '%s, which uses %s',
        case
            when l.pid is null then 'a prepared transaction'
            else format('process %s (%s)', l.pid, coalesce(nullif(a.application_name, ''), a.backend_type, 'unnamed'))
        end,
        string_agg(distinct c.relname, ', ' order by c.relname)
    )
from pg_locks l
join pg_class c on c.oid = l.relation
left join pg_stat_activity a on a.pid = l.pid
where l.granted
    and l.pid is distinct from pg_backend_pid()
    and l.database = (select oid from pg_database where datname = current_database())
    and c.relkind = 'r'
    and c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('schema_version'))
group by l.virtualtransaction, l.pid, a.application_name, a.backend_type, a.xact_start
order by a.xact_start nulls last, l.pid;

-- name: set_lock_timeout
select set_config('lock_timeout', :milliseconds, :is_local);

-- name: reset_role!
reset role;

-- name: reset_lock_timeout!
reset lock_timeout;

-- name: has_progress
select exists (
    select from pg_attribute where attrelid = to_regclass('schema_version') and attname = 'steps_done'
);

-- name: add_progress!
-- Schemas up to version 6 have no such column.
alter table schema_version add column steps_done integer not null default 0;

-- name: get_steps_done
-- The steps done of the migration after this version.
select steps_done from schema_version;

-- name: record_progress!
update schema_version set version = :version, steps_done = :steps_done;

-- name: work_in_sequence!
-- Citus changes tables with references between them in one transaction over one connection to each node.
set local citus.multi_shard_modify_mode = 'sequential';

-- name: is_distributed
-- Whether Citus distributes the schema, by deploy/citus.sql.
select to_regprocedure('distribute_tables()') is not null;

-- name: keep_settings_here!
-- The nodes have to be told what follows as ever.
set local citus.propagate_set_commands = 'none';

-- name: stop_propagation!
-- Until it is resumed. Citus refuses references from a local table to distributed ones, and to tell the planner of a
-- column, unless its propagation is off.
set citus.enable_ddl_propagation = off;

-- name: resume_propagation!
set citus.enable_ddl_propagation = on;

-- name: distribute_tables
select distribute_tables();

-- name: describe_shards
-- On Citus, tells the planner of each shard what schema.sql tells it of the table, which Citus passes on to no node, and
-- lets it look at the shard. Returns what failed.
select told.result
from pg_dist_partition d
join pg_attribute a on a.attrelid = d.logicalrelid
cross join run_command_on_shards(
    d.logicalrelid,
    $command$
        do $do$
        begin
            if not exists (
                select
                from pg_attribute a
                where a.attrelid = '%1$s'::regclass and a.attname = 'organization_id' and a.attoptions::text ~ 'n_distinct'
            ) then
                alter table %1$s alter column organization_id set (n_distinct = 1);
                analyze %1$s;
            end if;
        end
        $do$
    $command$
) told
where a.attname = 'organization_id' and a.attoptions::text ~ 'n_distinct' and not told.success;

-- name: find_owner
-- The present or future owner of the schema: the owner of its tables, or, before there are any, of the database; and a
-- statement that switches a transaction or session to that role. No row: it is this role itself, or a role that this
-- one is not a member of.
select format(case when :is_local then 'set local role %%I' else 'set role %%I' end, rolname)
from pg_roles
where oid = coalesce(
        (select relowner from pg_class where oid = to_regclass('schema_version')),
        (select datdba from pg_database where datname = current_database())
    )
    and rolname <> current_user
    and pg_has_role(oid, 'member');

-- name: has_role
select exists (select from pg_roles where rolname = :role);

-- name: list_service_grants
-- Statements that let a role read what the service serves, and record when a token or key was used.
-- No row: it is the owner, or the role that administers.
select format(statement, :role::text, current_schema())
from (
    values
        ('grant usage on schema %%2$I to %%1$I'),
        (
            'grant select on schema_version, organizations, users, api_tokens, signing_keys, visitors, contacts,'
            ' case_funnel_stages, cases, activities, messages, event_positions, events, import_runs to %%1$I'
        ),
        ('grant execute on function count_late_feeds() to %%1$I'),
        ('grant update (last_used_at) on api_tokens, signing_keys to %%1$I')
) as grants (statement)
where :role::text not in (current_user, session_user);

-- name: list_writer_grants
-- Statements that let a role write cases and their contents for the service: it sees the objects that a case refers to,
-- but no token or key.
-- No row: it is the owner, or the role that administers.
select format(statement, :role::text, current_schema(), current_database())
from (
    values
        (true, 'grant usage on schema %%2$I to %%1$I'),
        (
            true,
            'grant select on schema_version, users, visitors, contacts, case_funnel_stages, cases, activities, messages,'
            ' event_positions to %%1$I'
        ),
        (true, 'grant insert, update on users, visitors, contacts, case_funnel_stages, cases to %%1$I'),
        (true, 'grant delete on visitors, contacts, case_funnel_stages, cases, activities, messages to %%1$I'),
        (true, 'grant insert, update on activities, messages, event_positions to %%1$I'),
        (true, 'grant insert on events to %%1$I'),
        (true, 'grant select, insert, delete on import_runs to %%1$I'),
        (true, 'grant select, insert, update on removed_rows to %%1$I'),
        (true, 'grant select on erasure_keys, erased_visitors to %%1$I'),
        (
            not has_database_privilege(:role::text, current_database(), 'temporary')
            and (select pg_has_role(datdba, 'usage') from pg_database where datname = current_database()),
            'grant temporary on database %%3$I to %%1$I'
        )
) as grants (is_due, statement)
where is_due and :role::text not in (current_user, session_user);

-- name: list_administration_grants
-- Statements that let this session's role load cases, and manage tokens and keys, if it is not the owner.
with role as (
    select rolname as name from pg_roles where rolname = session_user and rolname <> current_user and not rolsuper
)
select format(statement, role.name, current_schema())
from role
cross join (
    values
        (0, 'grant usage on schema %2$I to %1$I'),
        (0, 'grant select on schema_version to %1$I'),
        (
            0,
            'grant select, insert, update on organizations, users, api_tokens, signing_keys, visitors, contacts,'
            ' case_funnel_stages, cases, activities, messages, event_positions, events to %1$I'
        ),
        (0, 'grant select, insert, delete on import_runs to %1$I'),
        (0, 'grant select, insert, update, delete on removed_rows, erased_visitors to %1$I'),
        (0, 'grant select, insert on erasure_keys to %1$I'),
        (0, 'grant select on late_feeds to %1$I'),
        (0, 'grant delete on visitors, contacts, case_funnel_stages, cases, activities, messages, events to %1$I'),
        (
            170000,
            'grant maintain on organizations, users, api_tokens, signing_keys, visitors, contacts,'
            ' case_funnel_stages, cases, activities, messages, event_positions, events to %1$I'
        )
) as grants (since, statement)
where current_setting('server_version_num')::integer >= since
union all
select format(
    'alter policy administration on %I to %s, %I',
    p.tablename,
    (select string_agg(quote_ident(name), ', ') from unnest(p.roles) as already (name)),
    role.name
)
from role
join pg_policies p
    on p.schemaname = current_schema()
    and p.policyname = 'administration'
    and role.name <> all(p.roles);

-- name: set_schema_version!
insert into schema_version (version) values (:version)
on conflict (only_row) do update set version = excluded.version;

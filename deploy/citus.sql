-- Turns the schema into Citus tables, distributed by organization: every statement of a request then goes to one shard.
--
-- As a superuser, on the coordinator, after init-db and before the first load; then run init-db again, which tells the
-- nodes what Citus does not tell them, and restart the service:
--     psql --set ON_ERROR_STOP=1 --single-transaction --file deploy/citus.sql "$DATABASE_URL"
-- It is safe to repeat, and to be repeated after an upgrade of the service. Later releases' init-db distributes the
-- tables that it adds. What has to be known besides is in docs/scaling.md.

create extension if not exists citus;

-- Tables with foreign keys between them, in one transaction: their shards are made over one connection to each node.
set local citus.multi_shard_modify_mode = 'sequential';

-- On the nodes Citus changes the schema as its owner, who needs no password for that where pg_hba.conf trusts the nodes.
do $$
begin
    execute (
        select format('alter role %I login', r.rolname)
        from pg_class c
        join pg_roles r on r.oid = c.relowner
        where c.oid = 'organizations'::regclass and not r.rolcanlogin
    );
exception
    when null_value_not_allowed then null; -- the owner may log in already
end
$$;

-- Fits what init-db makes to Citus, and distributes each table that is not yet: called here, and by init-db.
create or replace function distribute_tables() returns void language plpgsql as $body$
declare
    policy record;
    restrictive name;
    reference record;
    due regclass;
begin
    -- On the nodes Citus makes every policy a permissive one: what a restrictive policy demands would let rows be seen
    -- instead. So each of the others demands it, too.
    for policy in
        select
            p.polname,
            p.polrelid::regclass as table_name,
            pg_get_expr(p.polqual, p.polrelid) as condition,
            string_agg(pg_get_expr(r.polqual, r.polrelid), ' and ') as demand,
            array_agg(r.polname) as restrictive
        from pg_policy p
        join pg_policy r on r.polrelid = p.polrelid and not r.polpermissive
        join pg_class c on c.oid = p.polrelid
        where p.polpermissive
            and c.relnamespace = (select relnamespace from pg_class where oid = 'organizations'::regclass)
        group by p.oid
    loop
        execute format(
            'alter policy %I on %s using (%s and %s)', policy.polname, policy.table_name, policy.condition, policy.demand
        );
        foreach restrictive in array policy.restrictive loop
            execute format('drop policy if exists %I on %s', restrictive, policy.table_name);
        end loop;
    end loop;

    -- Policies of distributed tables have no subqueries; without one the setting is read for each look-up in an index.
    for policy in
        select p.polname, p.polrelid::regclass as table_name, pg_get_expr(p.polqual, p.polrelid) as condition
        from pg_policy p
        join pg_class c on c.oid = p.polrelid
        where c.relnamespace = (select relnamespace from pg_class where oid = 'organizations'::regclass)
            and pg_get_expr(p.polqual, p.polrelid) ~ '\( SELECT '
    loop
        execute format(
            'alter policy %I on %s using (%s)',
            policy.polname,
            policy.table_name,
            regexp_replace(policy.condition, '\( SELECT (.+?) AS "?\w+"?\)', '(\1)', 'g')
        );
    end loop;

    -- No update can cascade along a reference that holds the organization. Deferred instead, so that whoever moves an
    -- activity to another case can let its messages follow.
    for reference in
        select f.conname, f.conrelid::regclass as table_name, pg_get_constraintdef(f.oid) as definition
        from pg_constraint f
        where f.contype = 'f'
            and f.confupdtype = 'c'
            and f.connamespace = (select relnamespace from pg_class where oid = 'organizations'::regclass)
    loop
        execute format(
            'alter table %s drop constraint %I, add constraint %2$I %s deferrable initially deferred',
            reference.table_name,
            reference.conname,
            replace(reference.definition, ' ON UPDATE CASCADE', '')
        );
    end loop;

    -- One row that belongs to nobody. A copy on each node lets each node answer /readyz.
    if not exists (select from pg_dist_partition where logicalrelid = 'schema_version'::regclass) then
        perform create_reference_table('schema_version');
    end if;

    -- The number of shards is the largest number of nodes that this can grow to, and many organizations share a shard.
    -- It cannot be changed cheaply later.
    if not exists (select from pg_dist_partition where logicalrelid = 'organizations'::regclass) then
        perform create_distributed_table('organizations', 'organization_id', shard_count => 32);
    end if;

    -- An organization's rows of every table lie on one node: joins and foreign keys never leave it. What others refer to
    -- comes first, as a foreign key of a distributed table has to lead to one that is distributed already.
    loop
        due := (
            select c.oid
            from pg_class c
            where c.relnamespace = (select relnamespace from pg_class where oid = 'organizations'::regclass)
                and c.relkind = 'r'
                and not exists (select from pg_dist_partition d where d.logicalrelid = c.oid)
                and not exists (
                    select
                    from pg_constraint f
                    where f.conrelid = c.oid
                        and f.contype = 'f'
                        and f.confrelid <> c.oid
                        and not exists (select from pg_dist_partition d where d.logicalrelid = f.confrelid)
                )
            order by c.relname
            limit 1
        );
        exit when due is null;
        perform create_distributed_table(due::text, 'organization_id', colocate_with => 'organizations');
    end loop;

    -- Deferrable constraints are kept on the shards, where `set constraints` does not reach them: they have to be
    -- deferred from the start, for a load that lets two cases swap their numbers.
    if exists (select from pg_constraint where conname = 'cases_case_number_unique' and not condeferred) then
        alter table cases drop constraint cases_case_number_unique;
        alter table cases add constraint cases_case_number_unique
            unique (organization_id, case_number) deferrable initially deferred;
    end if;
    if exists (select from pg_constraint where conname = 'visitors_external_id_unique' and not condeferred) then
        alter table visitors drop constraint visitors_external_id_unique;
        alter table visitors add constraint visitors_external_id_unique
            unique (organization_id, external_id) deferrable initially deferred;
    end if;

    -- The same as in schema.sql, but no look-up for each organization, which Citus cannot send to all shards.
    if to_regclass('late_feeds') is not null then
        create or replace view late_feeds with (security_invoker = true) as
        select
            o.organization_id,
            max(newest.finished_at) as last_at,
            percentile_cont(0.5) within group (order by newest.pause) as usual_pause
        from organizations o
        join (
            select
                run.organization_id,
                run.finished_at,
                run.finished_at - lag(run.finished_at) over (
                    partition by run.organization_id order by run.finished_at
                ) as pause
            from (
                select
                    i.organization_id,
                    i.finished_at,
                    row_number() over (partition by i.organization_id order by i.finished_at desc) as place
                from import_runs i
                where i.is_stored and i.finished_at > now() - interval '30 days'
            ) run
            where run.place <= 20
        ) newest on newest.organization_id = o.organization_id
        where o.subscription_status = 'active'
        group by o.organization_id
        having count(newest.pause) >= 5
            and now() - max(newest.finished_at) > greatest(
                5 * percentile_cont(0.5) within group (order by newest.pause), interval '10 minutes'
            );
        -- The nodes are told of SET LOCAL alone.
        create or replace function count_late_feeds() returns bigint
            language plpgsql security definer set search_path from current as $count$
            begin
                set local citus.propagate_set_commands = 'local';
                set local cases.every_organization = 'on';
                return (select count(*) from late_feeds);
            end
            $count$;
    end if;
end
$body$;

select distribute_tables();

-- Answers a statement about an organization on the node that has it, on the shards of its tables, with a plan that is
-- kept: Citus passes the call on as it is, where it would plan a statement twice for each request. The service makes the
-- statement (cases_service/database/node_call.py); whoever calls needs the rights for what it reads.
--   notes       whether the organization's internal notes are shown
--   name        tells the statement from others
--   statement   with %1$s in place of the first of the tables, %2$s of the second, and so on
--   parameters  its values, as text
-- An undefined table means that the shard has moved away: whoever asks once more, asks the other node.
create or replace function ask_organization(
    organization_id uuid, notes boolean, name text, statement text, tables text[], parameters text[]
) returns bytea[] language plpgsql
    set search_path from current
    -- Sessions between nodes know nothing of the service's session: its plans by index, one for all values, and its form
    -- of text.
    set plan_cache_mode = 'force_generic_plan'
    set enable_seqscan = off
    set enable_hashjoin = off
    set enable_mergejoin = off
    set enable_bitmapscan = off
    set enable_sort = off
    set jit = off
    set row_security = on
    set timezone = 'UTC'
    set datestyle = 'ISO'
    set intervalstyle = 'postgres'
    set extra_float_digits = 1
    set bytea_output = 'hex'
    as $body$
declare
    shard bigint := get_shard_id_for_distribution_column('organizations', organization_id);
    prepared text := format('%s %s', shard, name);
    question text := format(
        'execute %I%s',
        prepared,
        (select '(' || string_agg(quote_nullable(p.value), ',') || ')' from unnest(parameters) as p (value))
    );
    answer bytea[];
    is_new boolean := false;
    oldest text;
begin
    perform set_config('transaction_read_only', 'on', true), set_config('cases.organization_id', organization_id::text, true);
    if notes then
        perform set_config('cases.private_notes', 'shown', true);
    end if;
    begin
        execute question into answer;
    exception
        when invalid_sql_statement_name then is_new := true; -- in this session
    end;
    if is_new then
        -- A plan takes about a megabyte, and nobody else sees to it that a session between nodes keeps so many.
        for oldest in
            select p.name from pg_prepared_statements p where p.name ~ '^[0-9]+ [0-9a-f]{32}$'
            order by p.prepare_time desc
            offset 99
        loop
            execute format('deallocate %I', oldest);
        end loop;
        execute format(
            'prepare %I as %s',
            prepared,
            format(statement, variadic array(
                select shard_name(t.name::regclass, get_shard_id_for_distribution_column(t.name, organization_id))
                from unnest(tables) with ordinality as t (name, place)
                order by t.place
            ))
        );
        execute question into answer;
    end if;
    -- The tables of a shard that has moved stay for a while. This comes last: what was read before it was true then.
    if not exists (
        select
        from pg_dist_placement p
        where p.shardid = shard and p.groupid = (select l.groupid from pg_dist_local_group l)
    ) then
        raise undefined_table using message = 'the shard has moved away';
    end if;
    return answer;
end
$body$;

select create_distributed_function(
    'ask_organization(uuid, boolean, text, text, text[], text[])', 'organization_id', colocate_with => 'organizations'
);

-- The views stay what they are: the coordinator puts their tables into a statement before it looks for shards.

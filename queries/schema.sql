-- The version of the schema, and what upgrades it.

-- name: get_schema_version
select version from schema_version;

-- name: has_schema
select to_regclass('schema_version') is not null;

-- name: lock_schema
-- One init-db at a time in a database; the number is the service's own.
select pg_advisory_xact_lock(7215398844120);

-- name: see_every_organization!
-- What a migration changes, it changes for all.
set local cases.every_organization = 'on';

-- name: find_owner
-- Who the schema belongs to, or will: the owner of its tables, before there are any the owner of the database; and a
-- statement that makes a transaction theirs. No row: it is this role itself, or a role that it is no member of.
select format('set local role %I', rolname)
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
            ' case_funnel_stages, cases to %%1$I'
        ),
        ('grant update (last_used_at) on api_tokens, signing_keys to %%1$I')
) as grants (statement)
where :role::text not in (current_user, session_user);

-- name: list_administration_grants
-- Statements that let the role of this session load cases, and manage tokens and keys, where it is not the owner.
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
            ' case_funnel_stages, cases to %1$I'
        ),
        (0, 'grant delete on visitors, contacts, case_funnel_stages, cases to %1$I'),
        (
            170000,
            'grant maintain on organizations, users, api_tokens, signing_keys, visitors, contacts,'
            ' case_funnel_stages, cases to %1$I'
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

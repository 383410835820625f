-- The version of the schema, and what upgrades it.

-- name: get_schema_version
select version from schema_version;

-- name: has_schema
select to_regclass('schema_version') is not null;

-- name: lock_schema
-- One init-db at a time in a database; the number is the service's own.
select pg_advisory_xact_lock(7215398844120);

-- name: set_schema_version!
insert into schema_version (version) values (:version)
on conflict (only_row) do update set version = excluded.version;

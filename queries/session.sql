-- What a session was given.

-- name: get_session
select lower(name), setting
from pg_settings
where lower(name) = any(:names);

-- name: is_bound_by_row_security
-- False for a superuser, a role that bypasses row security, and the owner of tables that do not force it.
-- Null where there is no schema.
select bool_and(row_security_active(oid))
from pg_class
where relnamespace = (select relnamespace from pg_class where oid = to_regclass('schema_version'))
    and relrowsecurity;

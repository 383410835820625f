-- What a session was given.

-- name: get_session
select lower(name), setting
from pg_settings
where lower(name) = any(:names);

-- How a load gets from lines to rows: lines are staged as they come, then the last line of each row is kept, then rows
-- are written, parents first, and removed, children first. Only the state after that counts.
--
-- place is a line's place among all lines of all files of the load: the larger, the later.
-- What makes one writing statement fail is found by one of the statements named find_, which then gives the place of
-- the offending line; the statement's savepoint has been rolled back by then, what came before it has not.
--
-- Marks in braces are filled at import from the closed tables of cases_service/loading/statements.py: {table} is one that
-- lines are for, {columns} are what its lines hold, {key} its primary key. `make load-statements` prints what comes out.

-- name: begin#
-- Each statement sees what others have committed before it: a load counts live keys after waiting for their lock.
set transaction isolation level read committed;
set local client_encoding = 'UTF8';

-- name: create_staging!
create temp table staged_{table} on commit drop as
select null::bigint as place, null::boolean as deleted, {columns} from {table}
with no data;

-- name: copy!
copy staged_{table} (place, deleted, {columns}) from stdin;

-- name: keep_last_lines#
-- Nothing analyses temporary tables by itself, and all that follows reads these.
analyze staged_{table};
delete from staged_{table} earlier
using (
    select {key}, max(place) as place from staged_{table} group by {key} having count(*) > 1
) last
where {earlier_is_last} and earlier.place < last.place;

-- name: begin_writing#
-- Loads take turns from here to their end, so that two never wait for each other's rows. The lock is 'case' in ASCII
-- and 1. Numbers and external identities may be taken by two rows meanwhile.
select pg_advisory_xact_lock(x'63617365'::integer, 1);
set constraints cases_case_number_unique, visitors_external_id_unique deferred;

-- name: limit_waiting
-- For a row or table that somebody else holds. The turn above may take as long as another load does.
select set_config('lock_timeout', :milliseconds, true);

-- name: fill_times_of_contacts!
-- Times that a line leaves out stay as they are, and are the time of loading for a new contact.
update staged_contacts s
set created_at = coalesce(
        s.created_at,
        (select c.created_at from contacts c where c.organization_id = s.organization_id and c.id = s.id),
        now()
    ),
    updated_at = coalesce(
        s.updated_at,
        (select c.updated_at from contacts c where c.organization_id = s.organization_id and c.id = s.id),
        now()
    )
where not s.deleted and (s.created_at is null or s.updated_at is null);

-- name: write!
insert into {table} ({columns})
select {columns}
from staged_{table}
where not deleted
on conflict ({key}) do update
set ({attributes}) = row ({excluded_attributes})
where ({stored_attributes}) is distinct from ({excluded_attributes});

-- name: write_signing_keys!
-- Of an existing key only the retirement is written, and only an earlier one than it has: the secret of the line is
-- the same, although it was encrypted anew. In the order in which rotate-secrets locks them.
insert into signing_keys (organization_id, id, algorithm, encrypted_secret, public_key, retired_at)
select organization_id, id, algorithm, encrypted_secret, public_key, retired_at
from staged_signing_keys
order by organization_id, id
on conflict (organization_id, id) do update
set retired_at = excluded.retired_at
where (signing_keys.retired_at is null and excluded.retired_at is not null)
    or (signing_keys.retired_at > statement_timestamp() and excluded.retired_at < signing_keys.retired_at);

-- name: list_organizations_with_staged_keys
select distinct organization_id from staged_signing_keys order by organization_id;

-- name: lock_organization
-- Held by whoever adds a signing key, before the live ones are counted. It does not hold up rows that refer to the
-- organization.
select from organizations where organization_id = :organization_id for no key update;

-- name: list_known_signing_keys
-- The staged keys that exist already, beside what is stored of them.
select
    s.place,
    s.organization_id::text,
    s.id::text,
    s.algorithm,
    s.encrypted_secret,
    s.public_key,
    k.algorithm as stored_algorithm,
    k.encrypted_secret as stored_encrypted_secret,
    k.public_key as stored_public_key,
    s.retired_at is null and k.retired_at is not null as revived
from staged_signing_keys s
join signing_keys k on k.organization_id = s.organization_id and k.id = s.id
order by s.place;

-- name: find_key_beyond_limit
-- The last line that added a live key to an organization which has more of them now than it may.
select s.place
from staged_signing_keys s
join signing_keys added
    on added.organization_id = s.organization_id
    and added.id = s.id
    and added.created_at = now()
where (added.retired_at is null or added.retired_at > statement_timestamp())
    and (
        select count(*)
        from signing_keys k
        where k.organization_id = added.organization_id
            and (k.retired_at is null or k.retired_at > statement_timestamp())
    ) > :maximum
order by s.place desc
limit 1;

-- name: find_without_parent
-- The first line whose {field} refers to no row of {parent}.
select s.place
from staged_{table} s
where not s.deleted
    and s.{field} is not null
    and not exists (
        select from {parent} p where p.organization_id = s.organization_id and p.{parent_id} = s.{field}
    )
order by s.place
limit 1;

-- name: remove!
delete from {table} t
using staged_{table} s
where s.deleted and t.organization_id = s.organization_id and t.id = s.id;

-- name: find_still_needed
-- The first line that removes a row of {parent} which a row of {table} still refers to.
select s.place
from staged_{parent} s
where s.deleted
    and exists (select from {table} t where t.organization_id = s.organization_id and t.{field} = s.id)
order by s.place
limit 1;

-- name: check_numbers_and_identities!
set constraints cases_case_number_unique, visitors_external_id_unique immediate;

-- name: find_repeated
-- The first line of those that are the last to claim a {field} which another row has, too.
select last.place
from (
    select distinct on (s.organization_id, s.{field}) s.place
    from staged_{table} s
    join {table} t on t.organization_id = s.organization_id and t.{field} = s.{field} and t.id <> s.id
    order by s.organization_id, s.{field}, s.place desc
) last
order by last.place
limit 1;

-- name: analyze!
-- Without waiting for who holds the table: the server says that it was skipped.
analyze (skip_locked) {table};

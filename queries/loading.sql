-- How a load turns lines into rows: lines are staged as they arrive, then one line per row is kept, then rows are
-- written, parents first, and removed, children first. Only the final state counts.
--
-- In mode each, which skips wrong lines, the statements named exclude_ take lines that conflict with the tables out of
-- staging before they are written, type by type, and return their places and organizations. Parents are written before
-- their children are checked, and children are removed before their parents, so the same check finds a line that depends
-- on an excluded one. Statements join staged lines with each other only by an index: the sessions of requests join by
-- nested loops alone.
--
-- What a load writes, removes or skips is counted by organization, by the statement that does it.
--
-- place is a line's place among all lines of all files of the load: the larger, the later.
-- When a writing statement fails, one of the statements named find_ returns the place of the offending line; by then
-- the statement's savepoint has been rolled back, but not the work before it.
--
-- A line that ends in "on Citus" is for that server alone, and one that ends in "elsewhere" for all others. Citus can
-- join lines, which only the coordinator has, to rows on its nodes in one way: it sends the lines there. It does so
-- only for an inner join that is read; a statement that changes staged lines, or looks for missing rows, first brings
-- the rows to the coordinator.
--
-- Marks in braces are filled at import from the closed tables of cases_service/loading/statements.py: {table} is a
-- table that lines are for, {columns} its lines' columns, {written} those and the derived ones, {key} its primary key.
-- `make load-statements` prints the results.

-- name: begin#
-- Each statement sees what others have committed before it: a load counts live keys after waiting for their lock.
set transaction isolation level read committed;
set local client_encoding = 'UTF8';
set local datestyle = 'ISO, MDY';
-- Citus would let loads of different organizations wait for each other, in case that there are several copies of a shard.
set local citus.all_modifications_commutative = on;

-- name: create_staging!
create temp table staged_{table} on commit drop as
select null::bigint as place, null::boolean as deleted, null::bigint as left_out, {written} from {table}
with no data;

-- name: copy!
-- left_out has a bit for each column that the line leaves out, counted from the first.
copy staged_{table} (place, deleted, left_out, {columns}) from stdin;

-- name: analyze_staging!
-- Nothing analyzes temporary tables automatically, and all later statements read these.
analyze staged_{table};

-- name: skip_late
-- Of several lines of a row, one that is older than the stored row or its removal adds nothing to a newer one. The first
-- one stays until the row is locked: it is what the row would get.
with late as (
    with known as materialized (  -- on Citus
        select t.organization_id, t.id, t.updated_at from staged_{table} s join {table} t on {staged_is_stored}  -- on Citus
    ),  -- on Citus
    gone as materialized (  -- on Citus
        select r.organization_id, r.id, r.updated_at  -- on Citus
        from staged_{table} s  -- on Citus
        join removed_rows r  -- on Citus
            on r.organization_id = s.organization_id and r.record_type = '{type}' and r.id = s.id  -- on Citus
    )  -- on Citus
    delete from staged_{table} s
    using (
        select l.place
        from (
            select place, row_number() over (partition by {key} order by {last}, left_out) as turn from staged_{table}
        ) numbered
        join staged_{table} l on l.place = numbered.place
        left join {table} t on t.organization_id = l.organization_id and t.id = l.id  -- elsewhere
        left join removed_rows r  -- elsewhere
            on r.organization_id = l.organization_id and r.record_type = '{type}' and r.id = l.id  -- elsewhere
        left join known t on t.organization_id = l.organization_id and t.id = l.id  -- on Citus
        left join gone r on r.organization_id = l.organization_id and r.id = l.id  -- on Citus
        where numbered.turn > 1
            and (t.updated_at >= l.updated_at or (t.id is null and r.updated_at > l.updated_at))
    ) old
    where old.place = s.place
    returning s.organization_id
)
select organization_id::text, count(*) from late group by organization_id;

-- name: merge_lines
-- If fields left out keep their values, the lines of one row are merged: each field has the value of the last line that
-- gives it. Lines before a removal do not count, and neither do the values of the row that it removes: lines after it
-- leave nothing out.
with added as (
    insert into staged_{table} (place, deleted, left_out, {columns})
    select
        (array_agg(place order by turn))[1],
        false,
        case when bool_or({is_new}) then 0 else bit_and(left_out) end,
        {merged}
    from (
        select *, min(turn) filter (where deleted) over (partition by {key}) as removal
        from (select *, row_number() over (partition by {key} order by {last}) as turn from staged_{table}) numbered
    ) lines
    where turn < coalesce(removal, turn + 1)
    group by {key}
    having count(*) > 1 or bool_or({is_new})
    returning organization_id
)
select organization_id::text, count(*) from added group by organization_id;

-- name: keep_last_lines
-- Keeps the last line of each row, and counts the others.
with surplus as (
    delete from staged_{table}
    where ctid = any (
            array(
                select line
                from (
                    select ctid as line, row_number() over (partition by {key} order by {last}, left_out) as turn
                    from staged_{table}
                ) numbered
                where turn > 1
            )
        )
    returning organization_id
)
select organization_id::text, count(*) from surplus group by organization_id;

-- name: exclude_wrong_last
-- Of each row that has several lines and whose line is wrong, excludes the line that counted, or the last one that gave
-- the wrong field: given is that field's bit in left_out, or 0.
delete from staged_{table}
where ctid = any (
        array(
            select line
            from (
                select
                    line,
                    row_number() over (partition by {key} order by (left_out & :given <> 0), turn) as giving
                from (
                    select
                        {key},
                        ctid as line,
                        left_out,
                        row_number() over (partition by {key} order by {last}, left_out) as turn,
                        count(*) over (partition by {key}) as lines,
                        bool_or(place = any (:places::bigint[])) over (partition by {key}) as is_wrong
                    from staged_{table}
                ) numbered
                where is_wrong and lines > 1
            ) rows
            where giving = 1
        )
    )
returning place, organization_id::text;

-- name: take_turns
-- From here on, loads of one organization take turns, so two never wait for each other's rows. The lock is 'case' in
-- ASCII and four bytes of the organization's id.
select pg_advisory_xact_lock(x'63617365'::integer, turn.key) from unnest(:keys::integer[]) as turn (key);

-- name: defer_constraints!
-- Two rows may share a number or an external identity meanwhile.
set constraints cases_case_number_unique, visitors_external_id_unique deferred;

-- name: index_staging!
create index on staged_{table} ({key});

-- name: index_claims!
create index on staged_{table} (organization_id, {field});

-- name: lock_positions!
-- Locked until the end, as by every writer of an event: positions are committed in order. The last position never moves
-- back.
insert into event_positions (organization_id, last_position)
select organization_id, max(position) from staged_events group by organization_id
on conflict (organization_id) do update
set last_position = greatest(event_positions.last_position, excluded.last_position);

-- name: skip_pruned!
-- Pruned events stay pruned.
with known as materialized (  -- on Citus
    select p.* from staged_events s join event_positions p on p.organization_id = s.organization_id  -- on Citus
)  -- on Citus
delete from staged_events s
using event_positions p  -- elsewhere
using (select distinct * from known) p  -- on Citus
where p.organization_id = s.organization_id and s.position <= p.pruned_position;

-- name: exclude_other_events
-- The lines whose position belongs to another event.
with known as materialized (  -- on Citus
    select e.*  -- on Citus
    from staged_events s  -- on Citus
    join events e on e.organization_id = s.organization_id and e.position = s.position  -- on Citus
)  -- on Citus
delete from staged_events s
using events e  -- elsewhere
using known e  -- on Citus
where e.organization_id = s.organization_id
    and e.position = s.position
    and (e.type, e.created_at, e.external_id, e.case_id, e.case_number, e.message_id)
        is distinct from (s.type, s.created_at, s.external_id, s.case_id, s.case_number, s.message_id)
returning s.place, s.organization_id::text;

-- name: write_events
with written as (
    insert into events (organization_id, position, type, created_at, external_id, case_id, case_number, message_id)
    select organization_id, position, type, created_at, external_id, case_id, case_number, message_id
    from staged_events
    on conflict (organization_id, position) do nothing
    returning organization_id
)
select organization_id::text, count(*) from written group by organization_id;

-- name: lock_rows
-- Locks these rows of an organization, so that nobody changes them between the check and the write.
with staged as materialized (
    select s.id from staged_{table} s where s.organization_id = :organization_id
)
, locked as materialized (  -- elsewhere
    select t.id
    from {table} t
    where t.organization_id = :organization_id and t.id in (select s.id from staged s)
    for no key update of t
)  -- elsewhere
select count(*) from locked  -- elsewhere
;

-- name: skip_stale
-- A line without a time of change is never stale.
with stale as (
    with known as materialized (  -- on Citus
        select t.* from staged_{table} s join {table} t on {staged_is_stored}  -- on Citus
    )  -- on Citus
    delete from staged_{table} s
    using {table} t  -- elsewhere
    using known t  -- on Citus
    where t.organization_id = s.organization_id and t.id = s.id and t.updated_at >= s.updated_at
    returning s.organization_id
)
select organization_id::text, count(*) from stale group by organization_id;

-- name: skip_removed
-- A line older than its row's removal is stale; so is a removal that has already been done.
with stale as (
    with known as materialized (  -- on Citus
        select r.organization_id, r.id, r.record_type, r.updated_at  -- on Citus
        from staged_{table} s  -- on Citus
        join removed_rows r  -- on Citus
            on r.organization_id = s.organization_id and r.record_type = '{type}' and r.id = s.id  -- on Citus
    ),  -- on Citus
    stored as materialized (  -- on Citus
        select t.organization_id, t.id from staged_{table} s join {table} t on {staged_is_stored}  -- on Citus
    )  -- on Citus
    delete from staged_{table} s
    using removed_rows r  -- elsewhere
    using known r  -- on Citus
    where r.organization_id = s.organization_id
        and r.record_type = '{type}'
        and r.id = s.id
        and (r.updated_at > s.updated_at or (s.deleted and r.updated_at = s.updated_at))
        and not exists (select from {table} t where t.organization_id = s.organization_id and t.id = s.id)  -- elsewhere
        and not exists (select from stored t where t.organization_id = s.organization_id and t.id = s.id)  -- on Citus
    returning s.organization_id
)
select organization_id::text, count(*) from stale group by organization_id;

-- name: remember_removed!
-- A removal may arrive before its row.
insert into removed_rows (organization_id, record_type, id, updated_at)
select s.organization_id, '{type}', s.id, s.updated_at
from staged_{table} s
where s.deleted and s.updated_at is not null
on conflict (organization_id, record_type, id) do update
set updated_at = excluded.updated_at
where removed_rows.updated_at < excluded.updated_at;

-- name: find_late!
-- The lines whose {field} leads to a row of {parent} that was removed earlier, and is not written again.
with known as materialized (  -- on Citus
    select distinct r.organization_id, r.record_type, r.id  -- on Citus
    from staged_{table} s  -- on Citus
    join removed_rows r  -- on Citus
        on r.organization_id = s.organization_id and r.record_type = '{parent_type}' and r.id = s.{field}  -- on Citus
),  -- on Citus
stored as materialized (  -- on Citus
    select distinct p.organization_id, p.id  -- on Citus
    from staged_{table} s  -- on Citus
    join {parent} p on p.organization_id = s.organization_id and p.id = s.{field}  -- on Citus
)  -- on Citus
update staged_{table} s
set is_late = true
from removed_rows r  -- elsewhere
from known r  -- on Citus
where not s.deleted
    and r.organization_id = s.organization_id
    and r.record_type = '{parent_type}'
    and r.id = s.{field}
    and not exists (select from {parent} p where p.organization_id = s.organization_id and p.id = s.{field})  -- elsewhere
    and not exists (select from stored p where p.organization_id = s.organization_id and p.id = s.{field})  -- on Citus
    and not exists (
        select
        from staged_{parent} n
        where not n.deleted and n.organization_id = s.organization_id and n.id = s.{field}
    );

-- name: remember_late!
-- Late activities, and those in cases that lines remove: their messages may come later.
insert into removed_rows (organization_id, record_type, id, updated_at)
select s.organization_id, 'activity', s.id, now()
from staged_activities s
where not s.deleted
    and (
        s.is_late
        or exists (
            select
            from staged_cases c
            where c.deleted
                and c.updated_at is not null
                and c.organization_id = s.organization_id
                and c.id = s.case_id
        )
    )
on conflict (organization_id, record_type, id) do nothing;

-- name: skip_found_late
with stale as (
    delete from staged_{table} s
    where s.is_late
    returning s.organization_id
)
select organization_id::text, count(*) from stale group by organization_id;

-- name: remember_removed_activities!
insert into removed_rows (organization_id, record_type, id, updated_at)
select s.organization_id, 'activity', s.id, now()
from staged_activities s
where s.deleted
on conflict (organization_id, record_type, id) do nothing;

-- name: remember_contents!
-- The activities that cases take along.
with known as materialized (  -- on Citus
    select a.organization_id, a.id  -- on Citus
    from staged_cases s  -- on Citus
    join activities a on a.organization_id = s.organization_id and a.case_id = s.id  -- on Citus
    where s.deleted and s.updated_at is not null  -- on Citus
)  -- on Citus
insert into removed_rows (organization_id, record_type, id, updated_at)
select a.organization_id, 'activity', a.id, now()
from staged_cases s  -- elsewhere
join activities a on a.organization_id = s.organization_id and a.case_id = s.id  -- elsewhere
where s.deleted and s.updated_at is not null  -- elsewhere
from known a  -- on Citus
on conflict (organization_id, record_type, id) do nothing;

-- name: fill_left_out!
-- Fields that a line leaves out keep their values.
with known as materialized (  -- on Citus
    select t.* from staged_{table} s join {table} t on {staged_is_stored}  -- on Citus
)  -- on Citus
update staged_{table} s
set {kept}
from {table} t  -- elsewhere
from known t  -- on Citus
where s.left_out <> 0 and not s.deleted and {staged_is_stored};

-- name: exclude_lines
delete from staged_{table} where place = any (:places) returning place, organization_id::text;

-- name: list_external_ids
-- The visitors that staged lines of some organizations name.
select s.place, s.organization_id::text, s.external_id
from staged_{table} s
where not s.deleted and s.organization_id = any (:organizations::uuid[]);

-- name: limit_request
-- For the statements of an import, which a request waits for. Sessions of requests scan no table and sort nothing; here
-- the staged lines must be scanned: otherwise the planner would rather read all cases through an index.
select
    set_config('statement_timeout', :milliseconds, true),
    set_config('lock_timeout', :milliseconds, true),
    set_config('enable_seqscan', 'on', true),
    set_config('enable_hashjoin', 'on', true),  -- on Citus
    set_config('enable_sort', 'on', true);

-- name: fill_times!
-- Times that a line leaves out keep their values.
with known as materialized (  -- on Citus
    select t.* from staged_{table} s join {table} t on {staged_is_stored}  -- on Citus
)  -- on Citus
update staged_{table} s
set created_at = coalesce(s.created_at, t.created_at), updated_at = coalesce(s.updated_at, t.updated_at)
from {table} t  -- elsewhere
from known t  -- on Citus
where not s.deleted and (s.created_at is null or s.updated_at is null) and {staged_is_stored};

-- name: fill_new_times!
-- A new row gets the time of loading for them.
update staged_{table}
set created_at = coalesce(created_at, now()), updated_at = coalesce(updated_at, now())
where not deleted and (created_at is null or updated_at is null);

-- name: write
-- Citus's own count is of the lines that it was given, not of the rows that it changed.
with written as (
    insert into {table} ({written})
    select {written}
    from staged_{table}
    where not deleted{if_known}
    on conflict ({key}) do update
    set ({attributes}) = row ({excluded_attributes})
    where ({stored_attributes}) is distinct from ({excluded_attributes})
    returning organization_id
)
select organization_id::text, count(*) from written group by organization_id;

-- name: write_new
-- The rows that were not stored when that was looked up. If a request has added one of them meanwhile, this fails.
with written as (
    insert into {table} ({written})
    select {written}
    from staged_{table}
    where not deleted and counted_in is null
    returning organization_id
)
select organization_id::text, count(*) from written group by organization_id;

-- name: follow_activities!
-- Moves messages to the new case of their activity; elsewhere, their foreign key does this.
update messages m
set case_id = s.case_id
from staged_activities s
where not s.deleted
    and m.organization_id = s.organization_id
    and m.activity_id = s.id
    and m.case_id <> s.case_id;

-- name: lock_conversations
-- Every writer to a conversation has locked its case. From here on, nobody can write to one organization's cases that
-- lines are about, so messages are counted right. Cases are locked before their contents, as in
-- cases_service/store/conversation_writing.py.
with staged as materialized (
    select s.id, s.case_id from staged_activities s where s.organization_id = :organization_id
    union
    select s.activity_id, null from staged_messages s where s.organization_id = :organization_id
),
staged_message as materialized (
    select s.id from staged_messages s where s.organization_id = :organization_id
),
concerned as materialized (
    select a.case_id as id
    from activities a
    where a.organization_id = :organization_id and a.id in (select s.id from staged s)
    union
    select m.case_id
    from messages m
    where m.organization_id = :organization_id and m.id in (select s.id from staged_message s)
)
, locked as materialized (  -- elsewhere
    select c.id
    from cases c
    where c.organization_id = :organization_id
        and c.id in (select s.case_id from staged s union select o.id from concerned o)
    for no key update of c
)  -- elsewhere
select count(*) from locked  -- elsewhere
;

-- name: create_staging_of_counts!
-- The activity that counts a stored message, and that activity's case. A removed activity may take its messages along.
alter table staged_messages
    add column counted_in uuid,
    add column counted_private boolean,
    add column counted_in_case uuid,
    add column is_late boolean;
alter table staged_activities add column takes_along boolean, add column is_late boolean;

-- name: index_messages!
create index on staged_messages (organization_id, activity_id);

-- name: fill_counted!
-- A request may add a message with the id of a line until the line is written. So lines of messages that are not known
-- here are only inserted, and remove nothing: what counts a message is always known before the message changes.
with known as materialized (  -- on Citus
    select m.* from staged_messages s join messages m on m.organization_id = s.organization_id and m.id = s.id  -- on Citus
)  -- on Citus
update staged_messages s
set counted_in = m.activity_id,
    counted_private = m.is_private,
    counted_in_case = m.case_id,
    activity_id = coalesce(s.activity_id, m.activity_id)
from messages m  -- elsewhere
from known m  -- on Citus
where m.organization_id = s.organization_id and m.id = s.id;

-- name: fill_cases_of_removed!
with known as materialized (  -- on Citus
    select a.* from staged_activities s join activities a on a.organization_id = s.organization_id and a.id = s.id  -- on Citus
)  -- on Citus
update staged_activities s
set case_id = a.case_id
from activities a  -- elsewhere
from known a  -- on Citus
where s.deleted and a.organization_id = s.organization_id and a.id = s.id;

-- name: fill_cases!
-- A message belongs to the case of its activity.
with known as materialized (  -- on Citus
    select distinct a.organization_id, a.id, a.case_id  -- on Citus
    from staged_messages s  -- on Citus
    join activities a on a.organization_id = s.organization_id and a.id = s.activity_id  -- on Citus
)  -- on Citus
update staged_messages s
set case_id = a.case_id
from activities a  -- elsewhere
from known a  -- on Citus
where a.organization_id = s.organization_id and a.id = s.activity_id and s.case_id is distinct from a.case_id;

-- name: fill_staged_cases!
-- Likewise, for the case that its activity is about to get.
update staged_messages s
set case_id = a.case_id
from staged_activities a
where not a.deleted and a.organization_id = s.organization_id and a.id = s.activity_id;

-- name: fill_staged_cases_of_counted!
-- Likewise, for the activity that a message is about to leave.
update staged_messages s
set counted_in_case = a.case_id
from staged_activities a
where not a.deleted
    and a.organization_id = s.organization_id
    and a.id = s.counted_in
    and a.case_id <> s.counted_in_case;

-- name: remove_moved_messages!
-- A line that moves a message into a case that lines remove becomes the message's removal, unless that case, or another
-- one that lines remove, takes it along from where it is stored.
update staged_messages s
set deleted = true, activity_id = s.counted_in, case_id = s.counted_in_case
from staged_cases c
where c.deleted
    and c.organization_id = s.organization_id
    and c.id = s.case_id
    and not s.deleted
    and s.counted_in is not null
    and not exists (
        select
        from staged_cases r
        where r.deleted and r.organization_id = s.organization_id and r.id = s.counted_in_case
    );

-- name: remove_moved_activities!
-- Likewise. Unlike an activity that a line removes, this one takes its messages along.
with known as materialized (  -- on Citus
    select a.* from staged_activities s join activities a on a.organization_id = s.organization_id and a.id = s.id  -- on Citus
)  -- on Citus
update staged_activities s
set deleted = true, takes_along = true, case_id = a.case_id
from staged_cases c, activities a  -- elsewhere
from staged_cases c, known a  -- on Citus
where c.deleted
    and c.organization_id = s.organization_id
    and c.id = s.case_id
    and not s.deleted
    and a.organization_id = s.organization_id
    and a.id = s.id
    and not exists (
        select
        from staged_cases r
        where r.deleted and r.organization_id = a.organization_id and r.id = a.case_id
    );

-- name: skip_taken_along
-- Removing a case removes its contents and excludes the lines about them. Returns how many of the removed rows no line
-- names.
with gone as (
    delete from staged_{table} s
    using staged_cases c
    where c.deleted and c.organization_id = s.organization_id and c.id = s.case_id
    returning s.place
)
select count(*) filter (where place = :unnamed) from gone;

-- name: fill_hidden!
-- A new activity with a note is hidden from visitors, like one opened by a note, until write_counts has counted a message
-- that they may see: a staged one may still prove wrong.
update staged_activities s
set is_private = coalesce(
    (
        select bool_or(m.is_private)
        from staged_messages m
        where m.organization_id = s.organization_id and m.activity_id = s.id and not m.deleted
    ),
    false
);

-- name: fill_hidden_as_stored!
-- A visible activity stays visible whatever notes are added; a hidden one stays hidden.
with known as materialized (  -- on Citus
    select a.* from staged_activities s join activities a on a.organization_id = s.organization_id and a.id = s.id  -- on Citus
)  -- on Citus
update staged_activities s
set is_private = a.is_private
from activities a  -- elsewhere
from known a  -- on Citus
where a.organization_id = s.organization_id and a.id = s.id;

-- name: remove_contents!
-- The messages that removed activities take along.
delete from messages m
using staged_activities s
where s.takes_along and m.organization_id = s.organization_id and m.activity_id = s.id;

-- name: create_counts!
-- Changes in message counts, so that a long conversation costs no more than a short one.
create temp table staged_counts on commit drop as
select
    organization_id,
    activity_id,
    coalesce(sum(number) filter (where not is_private), 0) as messages,
    coalesce(sum(number) filter (where is_private), 0) as notes
from (
    select organization_id, activity_id, is_private, 1 as number from staged_messages where not deleted
    union all
    select organization_id, counted_in, counted_private, -1 from staged_messages where counted_in is not null
) counted
group by organization_id, activity_id;

-- name: write_counts!
-- A hidden activity becomes visible with its first message that visitors may see.
update activities a
set message_count = a.message_count + s.messages,
    private_message_count = a.private_message_count + s.notes,
    is_private = a.is_private and s.messages <= 0
from staged_counts s
where a.organization_id = s.organization_id
    and a.id = s.activity_id
    and (s.messages <> 0 or s.notes <> 0);

-- name: exclude_ended_keys!
-- For an existing key only the retirement is written, and only one earlier than the stored one, unless that has passed.
with known as materialized (  -- on Citus
    select k.*  -- on Citus
    from staged_signing_keys s  -- on Citus
    join signing_keys k on k.organization_id = s.organization_id and k.id = s.id  -- on Citus
)  -- on Citus
delete from staged_signing_keys s
using signing_keys k  -- elsewhere
using known k  -- on Citus
where k.organization_id = s.organization_id and k.id = s.id and k.retired_at <= statement_timestamp();

-- name: write_signing_keys
-- The secret of an existing key's line is the same, although it was encrypted again. Rows are locked in the same order
-- as by rotate-secrets.
with written as (
    insert into signing_keys (organization_id, id, algorithm, encrypted_secret, public_key, retired_at, created_at)
    select organization_id, id, algorithm, encrypted_secret, public_key, retired_at, now()
    from staged_signing_keys
    order by organization_id, id
    on conflict (organization_id, id) do update
    set retired_at = excluded.retired_at
    where (signing_keys.retired_at is null and excluded.retired_at is not null)
        or excluded.retired_at < signing_keys.retired_at
    returning organization_id
)
select organization_id::text, count(*) from written group by organization_id;

-- name: list_organizations_with_staged_keys
select distinct organization_id from staged_signing_keys order by organization_id;

-- name: lock_organization
-- Locked before live keys are counted, by every session that adds a signing key. It does not block rows that refer to
-- the organization.
select from organizations where organization_id = :organization_id for no key update;

-- name: list_known_signing_keys
-- The staged keys that already exist, with the stored keys.
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
    k.retired_at is not null and s.retired_at is null
        or k.retired_at <= statement_timestamp() and s.retired_at > statement_timestamp() as revived
from staged_signing_keys s
join signing_keys k on k.organization_id = s.organization_id and k.id = s.id
order by s.place;

-- name: exclude_keys_beyond_limit
-- The lines that would exceed an organization's limit of live keys; the first ones are allowed.
with known as materialized (  -- on Citus
    select distinct k.*  -- on Citus
    from staged_signing_keys s  -- on Citus
    join signing_keys k on k.organization_id = s.organization_id  -- on Citus
)  -- on Citus
delete from staged_signing_keys s
using (
    select n.place, row_number() over (partition by n.organization_id order by n.place) as turn
    from staged_signing_keys n
    where (n.retired_at is null or n.retired_at > statement_timestamp())
        and not exists (
            select
            from signing_keys k  -- elsewhere
            from known k  -- on Citus
            where k.organization_id = n.organization_id and k.id = n.id
        )
) new
where s.place = new.place
    and new.turn + (
        select count(*)
        from signing_keys k  -- elsewhere
        from known k  -- on Citus
        where k.organization_id = s.organization_id
            and (k.retired_at is null or k.retired_at > statement_timestamp())
            and not exists (
                select
                from staged_signing_keys r
                where r.organization_id = k.organization_id
                    and r.id = k.id
                    and r.retired_at <= statement_timestamp()
            )
    ) > :maximum
returning s.place, s.organization_id::text;

-- name: find_key_beyond_limit
-- The last line that added a live key to an organization that now exceeds its limit.
with known as materialized (  -- on Citus
    select distinct k.*  -- on Citus
    from staged_signing_keys s  -- on Citus
    join signing_keys k on k.organization_id = s.organization_id  -- on Citus
)  -- on Citus
select s.place
from staged_signing_keys s
join signing_keys added  -- elsewhere
join known added  -- on Citus
    on added.organization_id = s.organization_id
    and added.id = s.id
    and added.created_at = now()
where (added.retired_at is null or added.retired_at > statement_timestamp())
    and (
        select count(*)
        from signing_keys k  -- elsewhere
        from known k  -- on Citus
        where k.organization_id = added.organization_id
            and (k.retired_at is null or k.retired_at > statement_timestamp())
    ) > :maximum
order by s.place desc
limit 1;

-- name: exclude_closed_without_time
-- A closed case whose line has no closing time, and which was not closed before.
delete from staged_cases
where not deleted and status = 'Closed' and closed_at is null
returning place, organization_id::text;

-- name: exclude_without_parent
-- The lines whose {field} refers to no row of {parent}, which has already been written.
with known as materialized (  -- on Citus
    select distinct {parent_key}  -- on Citus
    from staged_{table} s  -- on Citus
    join {parent} p on p.organization_id = s.organization_id and p.{parent_id} = s.{field}  -- on Citus
)  -- on Citus
delete from staged_{table} s
where not s.deleted
    and s.{field} is not null
    and not exists (
        select
        from {parent} p  -- elsewhere
        from known p  -- on Citus
        where p.organization_id = s.organization_id and p.{parent_id} = s.{field}
    )
returning s.place, s.organization_id::text;

-- name: remember_holders!
-- The rows that have a {field} claimed by lines, and the lines' own rows: for the next statement, which Citus refuses.
create temp table holders_{table} on commit drop as
select t.organization_id, t.id, t.{field}
from staged_{table} s
join {table} t on t.organization_id = s.organization_id and t.id = s.id
union
select t.organization_id, t.id, t.{field}
from staged_{table} s
join {table} t on t.organization_id = s.organization_id and t.{field} = s.{field};
create index on holders_{table} (organization_id, id);
create index on holders_{table} (organization_id, {field});
analyze holders_{table};

-- name: exclude_repeated
-- The lines whose {field} belongs to a row that stays unchanged, or goes to another line with precedence: one whose row
-- already has it, or an earlier line. An excluded line's row keeps its value, which no other line can then get.
with recursive wrong (organization_id, id) as (
    select s.organization_id, s.id
    from staged_{table} s
    join {table} t  -- elsewhere
    join holders_{table} t  -- on Citus
        on t.organization_id = s.organization_id and t.{field} = s.{field} and t.id <> s.id
    where not s.deleted
        and not exists (select from staged_{table} r where r.organization_id = t.organization_id and r.id = t.id)
    union
    select claim.organization_id, claim.id
    from (
        select
            s.organization_id,
            s.id,
            row_number() over (
                partition by s.organization_id, s.{field}
                order by own.{field} = s.{field} desc nulls last, s.place
            ) as turn
        from staged_{table} s
        left join {table} own  -- elsewhere
        left join holders_{table} own  -- on Citus
            on own.organization_id = s.organization_id and own.id = s.id
        where not s.deleted
    ) claim
    where claim.turn > 1
    union
    select successor.organization_id, successor.id
    from wrong
    join {table} kept  -- elsewhere
    join holders_{table} kept  -- on Citus
        on kept.organization_id = wrong.organization_id and kept.id = wrong.id
    join staged_{table} successor
        on successor.organization_id = kept.organization_id
        and successor.{field} = kept.{field}
        and successor.id <> kept.id
    where not successor.deleted
)
delete from staged_{table} s
using wrong
where s.organization_id = wrong.organization_id and s.id = wrong.id
returning s.place, s.organization_id::text;

-- name: exclude_still_needed
-- The lines that remove a row of {parent} to which a row of {table} still refers.
with known as materialized (  -- on Citus
    select distinct t.organization_id, t.{field}  -- on Citus
    from staged_{parent} s  -- on Citus
    join {table} t on t.organization_id = s.organization_id and t.{field} = s.id  -- on Citus
    where s.deleted  -- on Citus
)  -- on Citus
delete from staged_{parent} s
where s.deleted
    and exists (
        select
        from {table} t  -- elsewhere
        from known t  -- on Citus
        where t.organization_id = s.organization_id and t.{field} = s.id
    )
returning s.place, s.organization_id::text;

-- name: find_without_parent
-- The first line whose {field} refers to no row of {parent}.
with known as materialized (  -- on Citus
    select distinct {parent_key}  -- on Citus
    from staged_{table} s  -- on Citus
    join {parent} p on p.organization_id = s.organization_id and p.{parent_id} = s.{field}  -- on Citus
)  -- on Citus
select s.place
from staged_{table} s
where not s.deleted
    and s.{field} is not null
    and not exists (
        select
        from {parent} p  -- elsewhere
        from known p  -- on Citus
        where p.organization_id = s.organization_id and p.{parent_id} = s.{field}
    )
order by s.place
limit 1;

-- name: remember_named!
-- The rows that lines name, including stale lines.
create temp table named_{table} on commit drop as
select organization_id, id, {time} as at from staged_{table};
analyze named_{table};

-- name: count_unnamed
-- For each organization in the files: its rows of {table}, and those that no line names.
with known as materialized (  -- on Citus
    select {known_columns} from {table} t where t.organization_id = any (:organizations::uuid[])  -- on Citus
)  -- on Citus
select t.organization_id::text, count(*), count(*) filter (where {unnamed})
from {table} t  -- elsewhere
from known t  -- on Citus
left join named_{table} n on n.organization_id = t.organization_id and n.id = t.id
left join (select organization_id, max(at) as at from named_{table} group by organization_id) newest
    on newest.organization_id = t.organization_id
where t.organization_id = any (:organizations::uuid[])
group by t.organization_id
order by t.organization_id;

-- name: stage_unnamed!
with known as materialized (  -- on Citus
    select {known_columns} from {table} t where t.organization_id = any (:organizations::uuid[])  -- on Citus
)  -- on Citus
insert into staged_{table} (place, deleted, organization_id, id)
select :place, true, t.organization_id, t.id
from {table} t  -- elsewhere
from known t  -- on Citus
left join named_{table} n on n.organization_id = t.organization_id and n.id = t.id
left join (select organization_id, max(at) as at from named_{table} group by organization_id) newest
    on newest.organization_id = t.organization_id
where t.organization_id = any (:organizations::uuid[]) and {unnamed};

-- name: remove
with removed as (
    delete from {table} t
    using staged_{table} s
    where s.deleted{if_known} and t.organization_id = s.organization_id and t.id = s.id
    returning t.organization_id
)
select organization_id::text, count(*) from removed group by organization_id;

-- name: find_still_needed
-- The first line that removes a row of {parent} to which a row of {table} still refers.
with known as materialized (  -- on Citus
    select distinct t.organization_id, t.{field}  -- on Citus
    from staged_{parent} s  -- on Citus
    join {table} t on t.organization_id = s.organization_id and t.{field} = s.id  -- on Citus
    where s.deleted  -- on Citus
)  -- on Citus
select s.place
from staged_{parent} s
where s.deleted
    and exists (
        select
        from {table} t  -- elsewhere
        from known t  -- on Citus
        where t.organization_id = s.organization_id and t.{field} = s.id
    )
order by s.place
limit 1;

-- name: check_case_numbers!
set constraints cases_case_number_unique immediate;

-- name: check_external_ids!
set constraints visitors_external_id_unique immediate;

-- name: list_repeated
-- All lines whose {field} another row has, too.
select s.place
from staged_{table} s
join {table} t on t.organization_id = s.organization_id and t.{field} = s.{field} and t.id <> s.id
where not s.deleted;

-- name: find_repeated
-- The first of the lines that are the last to claim a {field} that another row has, too.
select last.place
from (
    select distinct on (s.organization_id, s.{field}) s.place
    from staged_{table} s
    join {table} t on t.organization_id = s.organization_id and t.{field} = s.{field} and t.id <> s.id
    order by s.organization_id, s.{field}, s.place desc
) last
order by last.place
limit 1;

-- name: is_analyze_due
-- Once a tenth of a table changed, as for autovacuum: small loads leave the statistics of a large table alone. What a
-- table of Citus holds is known on its nodes alone, where autovacuum sees to it.
select reltuples < 0 or :changed::bigint * 10 >= reltuples
from pg_class
where to_regclass('pg_catalog.pg_dist_partition') is null
    and oid = '{table}'::regclass;

-- name: analyze!
-- Does not wait for a session that holds the table: the server reports that it was skipped.
analyze (skip_locked) {table};

-- The results of an organization's loads and imports.

-- name: begin!
-- Two sessions that delete the same rows at once would fail in a transaction that keeps its snapshot.
set transaction isolation level read committed;

-- name: forget_old_runs!
-- Deletes runs older than the latest thousand, counting the one that is about to be added.
delete from import_runs
where organization_id = :organization_id
    and (finished_at, id) <= (
        select finished_at, id
        from import_runs
        where organization_id = :organization_id
        order by finished_at desc, id desc
        limit 1 offset 999
    );

-- name: add_import_run!
insert into import_runs (
    organization_id, source, api_token_id, is_stored, lines, written, removed, stale, wrong, duration_ms
)
values (
    :organization_id, :source, :api_token_id, :is_stored, :lines, :written, :removed, :stale, :wrong, :duration_ms
);

-- name: list_existing
-- The given organizations that exist.
select organization_id
from organizations
where organization_id = any (:organization_ids)
order by organization_id;

-- name: list_import_runs
-- The latest first.
select r.id, r.finished_at, r.source, r.api_token_id, r.is_stored, r.lines, r.written, r.removed, r.stale, r.wrong,
    r.duration_ms
from import_runs r
where r.organization_id = :organization_id
order by r.finished_at desc, r.id desc
limit :page_size;

-- name: count_late_feeds
-- Of all organizations, without telling which.
select count_late_feeds();

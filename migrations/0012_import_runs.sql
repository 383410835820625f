-- A feed that stops is noticed: each load and import leaves what it came to. New things alone, so that nobody waits.

-- step: tables
-- What each load and each import of an organization came to: its latest ones, as old ones are removed by who adds one.
-- `written` and `removed` are rows that changed, `stale` and `wrong` are lines; they are null where a load was of several
-- organizations, and not counted apart. Lines that were refused as a whole stored nothing.
create table import_runs (
    organization_id uuid not null,
    id uuid not null default gen_random_uuid(),
    finished_at timestamptz not null default clock_timestamp(),
    source text not null,
    api_token_id uuid,
    is_stored boolean not null,
    lines bigint not null,
    written bigint,
    removed bigint,
    stale bigint,
    wrong bigint,
    duration_ms bigint not null,
    constraint import_runs_pk primary key (organization_id, finished_at, id),
    constraint import_runs_organization_fk foreign key (organization_id)
        references organizations (organization_id),
    constraint import_runs_source_known check (source in ('load', 'import')),
    constraint import_runs_counts_not_negative check (
        least(lines, written, removed, stale, wrong, duration_ms) >= 0
    )
);

-- The feeds that came regularly, and do not any more: silent for ten minutes and for five times the usual pause between
-- the latest twenty. After thirty days a feed counts as ended.
create view late_feeds with (security_invoker = true) as
select
    o.organization_id,
    max(newest.finished_at) as last_at,
    percentile_cont(0.5) within group (order by newest.pause) as usual_pause
from organizations o
cross join lateral (
    select run.finished_at, run.finished_at - lag(run.finished_at) over (order by run.finished_at) as pause
    from (
        select i.finished_at
        from import_runs i
        where i.organization_id = o.organization_id
            and i.is_stored
            and i.finished_at > now() - interval '30 days'
        order by i.finished_at desc
        limit 20
    ) run
) newest
where o.subscription_status = 'active'
group by o.organization_id
having count(newest.pause) >= 5
    and now() - max(newest.finished_at) > greatest(
        5 * percentile_cont(0.5) within group (order by newest.pause), interval '10 minutes'
    );

-- How many they are, and nothing else, for a role that sees one organization at a time. The setting lasts until the end of
-- the transaction, and lets nobody see more whom no policy lets.
create function count_late_feeds() returns bigint
    language sql security definer
    begin atomic
        select set_config('cases.every_organization', 'on', true);
        select count(*) from late_feeds;
    end;
revoke execute on function count_late_feeds() from public;

alter table import_runs enable row level security, force row level security;
create policy own_organization on import_runs
    using (organization_id = (select nullif(current_setting('cases.organization_id', true), '')::uuid));
create policy administration on import_runs to current_user
    using (current_setting('cases.every_organization', true) = 'on');

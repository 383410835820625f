-- The cases of a visitor filtered by priority: as in cases.sql, and a stream is a contact and one of the wanted
-- :priorities; its keys come from an index on (organization, contact, priority, time, id). So a filter costs an index
-- descent for each stream, however few cases pass it.
-- :nothing_else says that this is the whole filter. Where it is not, each key's case is looked at, one by one.

-- name: list_by_priority_and_created_at_ascending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        wanted.priority,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:priorities::smallint[]) as wanted (priority)
),
nearest as materialized (
    select s.contact_id, s.priority, s.share, key.created_at, key.id
    from streams s
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and c.priority = s.priority
            and (c.created_at, c.id) > (:after, :after_id)
            and c.created_at <= :furthest
            and (:nothing_else or (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.created_at, c.id
        limit s.share
    ) key
    order by key.created_at, key.id
    limit :row_limit
),
page as materialized (
    select n.created_at, n.id
    from nearest n
    union all
    select key.created_at, key.id
    from (
        select
            n.*,
            row_number() over stream as place,
            coalesce((select max(n.created_at) from nearest n having count(*) = :row_limit), :furthest) as bound
        from nearest n
        window stream as (partition by n.contact_id, n.priority order by n.created_at, n.id)
    ) last
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and c.priority = last.priority
            and (c.created_at, c.id) > (last.created_at, last.id)
            and c.created_at <= last.bound
            and (:nothing_else or (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.created_at, c.id
        limit :row_limit
    ) key
    where last.place = last.share
    order by created_at, id
    limit :row_limit
)
select
    v.id as visitor_id,
    :look_behind and exists (
        select
        from (
            select s.contact_id, s.priority
            from streams s
            order by s.contact_id <> (
                select c.contact_id from cases c where c.organization_id = :organization_id and c.id = :after_id
            )
        ) s
        cross join lateral (
            select
            from cases c
            where c.organization_id = :organization_id
                and c.contact_id = s.contact_id
                and c.priority = s.priority
                and (c.created_at, c.id) <= (:after, :after_id)
                and c.created_at >= :rearmost
                and (:nothing_else or (
                    select
                        w.updated_at >= :updated_since
                        and w.updated_at < :updated_until
                        and w.status = any(:statuses)
                        and w.channel_number = any(:channels)
                    from cases w
                    where w.organization_id = :organization_id and w.id = c.id
                ))
            order by c.created_at desc, c.id desc
            limit 1
        ) behind
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    p.id,
    d.content_hash,
    contact."contact.content_hash",
    owner."owner.content_hash",
    author."created_by_user.content_hash",
    editor."updated_by_user.content_hash",
    stage."case_funnel_stage.content_hash",
    whole.*
from visitor v
left join page p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
left join case_contacts contact
    on contact."contact.organization_id" = :organization_id
    and contact."contact.id" = case when :with_contact then d.contact_id end
left join case_owners owner
    on owner."owner.organization_id" = :organization_id
    and owner."owner.id" = case when :with_owner then d.owner_id end
left join case_authors author
    on author."created_by_user.organization_id" = :organization_id
    and author."created_by_user.id" = case when :with_created_by_user then d.created_by_user_id end
left join case_editors editor
    on editor."updated_by_user.organization_id" = :organization_id
    and editor."updated_by_user.id" = case when :with_updated_by_user then d.updated_by_user_id end
left join case_stages stage
    on stage."case_funnel_stage.organization_id" = :organization_id
    and stage."case_funnel_stage.id" = case when :with_case_funnel_stage then d.case_funnel_stage_id end
left join lateral (select d.*, contact.*, owner.*, author.*, editor.*, stage.*) whole on :whole
order by p.created_at, p.id;

-- name: list_by_priority_and_created_at_descending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        wanted.priority,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:priorities::smallint[]) as wanted (priority)
),
nearest as materialized (
    select s.contact_id, s.priority, s.share, key.created_at, key.id
    from streams s
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and c.priority = s.priority
            and (c.created_at, c.id) < (:after, :after_id)
            and c.created_at >= :furthest
            and (:nothing_else or (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.created_at desc, c.id desc
        limit s.share
    ) key
    order by key.created_at desc, key.id desc
    limit :row_limit
),
page as materialized (
    select n.created_at, n.id
    from nearest n
    union all
    select key.created_at, key.id
    from (
        select
            n.*,
            row_number() over stream as place,
            coalesce((select min(n.created_at) from nearest n having count(*) = :row_limit), :furthest) as bound
        from nearest n
        window stream as (partition by n.contact_id, n.priority order by n.created_at desc, n.id desc)
    ) last
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and c.priority = last.priority
            and (c.created_at, c.id) < (last.created_at, last.id)
            and c.created_at >= last.bound
            and (:nothing_else or (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.created_at desc, c.id desc
        limit :row_limit
    ) key
    where last.place = last.share
    order by created_at desc, id desc
    limit :row_limit
)
select
    v.id as visitor_id,
    :look_behind and exists (
        select
        from (
            select s.contact_id, s.priority
            from streams s
            order by s.contact_id <> (
                select c.contact_id from cases c where c.organization_id = :organization_id and c.id = :after_id
            )
        ) s
        cross join lateral (
            select
            from cases c
            where c.organization_id = :organization_id
                and c.contact_id = s.contact_id
                and c.priority = s.priority
                and (c.created_at, c.id) >= (:after, :after_id)
                and c.created_at <= :rearmost
                and (:nothing_else or (
                    select
                        w.updated_at >= :updated_since
                        and w.updated_at < :updated_until
                        and w.status = any(:statuses)
                        and w.channel_number = any(:channels)
                    from cases w
                    where w.organization_id = :organization_id and w.id = c.id
                ))
            order by c.created_at, c.id
            limit 1
        ) behind
    ) as has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    p.id,
    d.content_hash,
    contact."contact.content_hash",
    owner."owner.content_hash",
    author."created_by_user.content_hash",
    editor."updated_by_user.content_hash",
    stage."case_funnel_stage.content_hash",
    whole.*
from visitor v
left join page p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
left join case_contacts contact
    on contact."contact.organization_id" = :organization_id
    and contact."contact.id" = case when :with_contact then d.contact_id end
left join case_owners owner
    on owner."owner.organization_id" = :organization_id
    and owner."owner.id" = case when :with_owner then d.owner_id end
left join case_authors author
    on author."created_by_user.organization_id" = :organization_id
    and author."created_by_user.id" = case when :with_created_by_user then d.created_by_user_id end
left join case_editors editor
    on editor."updated_by_user.organization_id" = :organization_id
    and editor."updated_by_user.id" = case when :with_updated_by_user then d.updated_by_user_id end
left join case_stages stage
    on stage."case_funnel_stage.organization_id" = :organization_id
    and stage."case_funnel_stage.id" = case when :with_case_funnel_stage then d.case_funnel_stage_id end
left join lateral (select d.*, contact.*, owner.*, author.*, editor.*, stage.*) whole on :whole
order by p.created_at desc, p.id desc;

-- name: list_by_priority_and_updated_at_ascending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        wanted.priority,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:priorities::smallint[]) as wanted (priority)
),
nearest as materialized (
    select s.contact_id, s.priority, s.share, key.updated_at, key.id
    from streams s
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and c.priority = s.priority
            and (c.updated_at, c.id) > (:after, :after_id)
            and c.updated_at <= :furthest
            and (:nothing_else or (
                select
                    w.created_at >= :created_since
                    and w.created_at < :created_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.updated_at, c.id
        limit s.share
    ) key
    order by key.updated_at, key.id
    limit :row_limit
),
page as materialized (
    select n.updated_at, n.id
    from nearest n
    union all
    select key.updated_at, key.id
    from (
        select
            n.*,
            row_number() over stream as place,
            coalesce((select max(n.updated_at) from nearest n having count(*) = :row_limit), :furthest) as bound
        from nearest n
        window stream as (partition by n.contact_id, n.priority order by n.updated_at, n.id)
    ) last
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and c.priority = last.priority
            and (c.updated_at, c.id) > (last.updated_at, last.id)
            and c.updated_at <= last.bound
            and (:nothing_else or (
                select
                    w.created_at >= :created_since
                    and w.created_at < :created_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.updated_at, c.id
        limit :row_limit
    ) key
    where last.place = last.share
    order by updated_at, id
    limit :row_limit
)
select
    v.id as visitor_id,
    :look_behind and exists (
        select
        from (
            select s.contact_id, s.priority
            from streams s
            order by s.contact_id <> (
                select c.contact_id from cases c where c.organization_id = :organization_id and c.id = :after_id
            )
        ) s
        cross join lateral (
            select
            from cases c
            where c.organization_id = :organization_id
                and c.contact_id = s.contact_id
                and c.priority = s.priority
                and (c.updated_at, c.id) <= (:after, :after_id)
                and c.updated_at >= :rearmost
                and (:nothing_else or (
                    select
                        w.created_at >= :created_since
                        and w.created_at < :created_until
                        and w.status = any(:statuses)
                        and w.channel_number = any(:channels)
                    from cases w
                    where w.organization_id = :organization_id and w.id = c.id
                ))
            order by c.updated_at desc, c.id desc
            limit 1
        ) behind
    ) as has_before,
    (extract(epoch from p.updated_at) * 1000000)::bigint as position,
    p.id,
    d.content_hash,
    contact."contact.content_hash",
    owner."owner.content_hash",
    author."created_by_user.content_hash",
    editor."updated_by_user.content_hash",
    stage."case_funnel_stage.content_hash",
    whole.*
from visitor v
left join page p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
left join case_contacts contact
    on contact."contact.organization_id" = :organization_id
    and contact."contact.id" = case when :with_contact then d.contact_id end
left join case_owners owner
    on owner."owner.organization_id" = :organization_id
    and owner."owner.id" = case when :with_owner then d.owner_id end
left join case_authors author
    on author."created_by_user.organization_id" = :organization_id
    and author."created_by_user.id" = case when :with_created_by_user then d.created_by_user_id end
left join case_editors editor
    on editor."updated_by_user.organization_id" = :organization_id
    and editor."updated_by_user.id" = case when :with_updated_by_user then d.updated_by_user_id end
left join case_stages stage
    on stage."case_funnel_stage.organization_id" = :organization_id
    and stage."case_funnel_stage.id" = case when :with_case_funnel_stage then d.case_funnel_stage_id end
left join lateral (select d.*, contact.*, owner.*, author.*, editor.*, stage.*) whole on :whole
order by p.updated_at, p.id;

-- name: list_by_priority_and_updated_at_descending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        wanted.priority,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:priorities::smallint[]) as wanted (priority)
),
nearest as materialized (
    select s.contact_id, s.priority, s.share, key.updated_at, key.id
    from streams s
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and c.priority = s.priority
            and (c.updated_at, c.id) < (:after, :after_id)
            and c.updated_at >= :furthest
            and (:nothing_else or (
                select
                    w.created_at >= :created_since
                    and w.created_at < :created_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.updated_at desc, c.id desc
        limit s.share
    ) key
    order by key.updated_at desc, key.id desc
    limit :row_limit
),
page as materialized (
    select n.updated_at, n.id
    from nearest n
    union all
    select key.updated_at, key.id
    from (
        select
            n.*,
            row_number() over stream as place,
            coalesce((select min(n.updated_at) from nearest n having count(*) = :row_limit), :furthest) as bound
        from nearest n
        window stream as (partition by n.contact_id, n.priority order by n.updated_at desc, n.id desc)
    ) last
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and c.priority = last.priority
            and (c.updated_at, c.id) < (last.updated_at, last.id)
            and c.updated_at >= last.bound
            and (:nothing_else or (
                select
                    w.created_at >= :created_since
                    and w.created_at < :created_until
                    and w.status = any(:statuses)
                    and w.channel_number = any(:channels)
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            ))
        order by c.updated_at desc, c.id desc
        limit :row_limit
    ) key
    where last.place = last.share
    order by updated_at desc, id desc
    limit :row_limit
)
select
    v.id as visitor_id,
    :look_behind and exists (
        select
        from (
            select s.contact_id, s.priority
            from streams s
            order by s.contact_id <> (
                select c.contact_id from cases c where c.organization_id = :organization_id and c.id = :after_id
            )
        ) s
        cross join lateral (
            select
            from cases c
            where c.organization_id = :organization_id
                and c.contact_id = s.contact_id
                and c.priority = s.priority
                and (c.updated_at, c.id) >= (:after, :after_id)
                and c.updated_at <= :rearmost
                and (:nothing_else or (
                    select
                        w.created_at >= :created_since
                        and w.created_at < :created_until
                        and w.status = any(:statuses)
                        and w.channel_number = any(:channels)
                    from cases w
                    where w.organization_id = :organization_id and w.id = c.id
                ))
            order by c.updated_at, c.id
            limit 1
        ) behind
    ) as has_before,
    (extract(epoch from p.updated_at) * 1000000)::bigint as position,
    p.id,
    d.content_hash,
    contact."contact.content_hash",
    owner."owner.content_hash",
    author."created_by_user.content_hash",
    editor."updated_by_user.content_hash",
    stage."case_funnel_stage.content_hash",
    whole.*
from visitor v
left join page p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
left join case_contacts contact
    on contact."contact.organization_id" = :organization_id
    and contact."contact.id" = case when :with_contact then d.contact_id end
left join case_owners owner
    on owner."owner.organization_id" = :organization_id
    and owner."owner.id" = case when :with_owner then d.owner_id end
left join case_authors author
    on author."created_by_user.organization_id" = :organization_id
    and author."created_by_user.id" = case when :with_created_by_user then d.created_by_user_id end
left join case_editors editor
    on editor."updated_by_user.organization_id" = :organization_id
    and editor."updated_by_user.id" = case when :with_updated_by_user then d.updated_by_user_id end
left join case_stages stage
    on stage."case_funnel_stage.organization_id" = :organization_id
    and stage."case_funnel_stage.id" = case when :with_case_funnel_stage then d.case_funnel_stage_id end
left join lateral (select d.*, contact.*, owner.*, author.*, editor.*, stage.*) whole on :whole
order by p.updated_at desc, p.id desc;

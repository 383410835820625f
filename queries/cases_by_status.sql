-- The filtered cases of a visitor: as in cases.sql, and over streams instead of contacts.
--
-- A stream is a contact and one of the wanted :statuses; its keys come in order from an index on (organization,
-- contact, status, time, id). So a status costs an index descent for each stream, however few cases have it. A limit
-- on the column that is ordered by is where the scan of a stream ends; where it begins is in :after already, which
-- lies no further out than that limit. Everything else is checked on the keys that the streams give.
-- Each condition is always there, with a value that lets everything pass where it was not asked for: one statement,
-- one plan. array_position keeps a list from being taken for an index condition.

-- name: list_by_status_and_created_at_ascending
with visitor as materialized (
    select
        v.id,
        :look_behind and exists (
            select
            from contacts x
            cross join unnest(:statuses::text[]) as wanted (status)
            cross join lateral (
                select
                from cases c
                where c.organization_id = :organization_id
                    and c.contact_id = x.id
                    and c.status = wanted.status
                    and (c.created_at, c.id) <= (:after::timestamptz, :after_id::uuid)
                    and c.created_at >= :created_since::timestamptz
                    and c.updated_at >= :updated_since::timestamptz
                    and c.updated_at < :updated_until::timestamptz
                    and array_position(:facets::smallint[], c.facet) is not null
                order by c.created_at desc, c.id desc
                limit 1
            ) before
            where x.organization_id = :organization_id
                and x.visitor_id = v.id
        ) as has_before
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
heads as materialized (
    select x.id as contact_id, wanted.status, head.created_at, head.id
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:statuses::text[]) as wanted (status)
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = x.id
            and c.status = wanted.status
            and (c.created_at, c.id) > (:after::timestamptz, :after_id::uuid)
            and c.created_at < :created_until::timestamptz
            and c.updated_at >= :updated_since::timestamptz
            and c.updated_at < :updated_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.created_at, c.id
        limit 1
    ) head
    order by head.created_at, head.id
    limit :row_limit
),
page as materialized (
    select key.created_at, key.id
    from heads h
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = h.contact_id
            and c.status = h.status
            and (c.created_at, c.id) >= (h.created_at, h.id)
            and c.created_at < :created_until::timestamptz
            and c.updated_at >= :updated_since::timestamptz
            and c.updated_at < :updated_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.created_at, c.id
        limit :row_limit
    ) key
    order by key.created_at, key.id
    limit :row_limit
)
select
    v.id as visitor_id,
    v.has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    d.*,
    contact.*,
    owner.*,
    author.*,
    editor.*,
    stage.*
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
order by p.created_at, p.id;

-- name: list_by_status_and_created_at_descending
with visitor as materialized (
    select
        v.id,
        :look_behind and exists (
            select
            from contacts x
            cross join unnest(:statuses::text[]) as wanted (status)
            cross join lateral (
                select
                from cases c
                where c.organization_id = :organization_id
                    and c.contact_id = x.id
                    and c.status = wanted.status
                    and (c.created_at, c.id) >= (:after::timestamptz, :after_id::uuid)
                    and c.created_at < :created_until::timestamptz
                    and c.updated_at >= :updated_since::timestamptz
                    and c.updated_at < :updated_until::timestamptz
                    and array_position(:facets::smallint[], c.facet) is not null
                order by c.created_at, c.id
                limit 1
            ) before
            where x.organization_id = :organization_id
                and x.visitor_id = v.id
        ) as has_before
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
heads as materialized (
    select x.id as contact_id, wanted.status, head.created_at, head.id
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:statuses::text[]) as wanted (status)
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = x.id
            and c.status = wanted.status
            and (c.created_at, c.id) < (:after::timestamptz, :after_id::uuid)
            and c.created_at >= :created_since::timestamptz
            and c.updated_at >= :updated_since::timestamptz
            and c.updated_at < :updated_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.created_at desc, c.id desc
        limit 1
    ) head
    order by head.created_at desc, head.id desc
    limit :row_limit
),
page as materialized (
    select key.created_at, key.id
    from heads h
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = h.contact_id
            and c.status = h.status
            and (c.created_at, c.id) <= (h.created_at, h.id)
            and c.created_at >= :created_since::timestamptz
            and c.updated_at >= :updated_since::timestamptz
            and c.updated_at < :updated_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.created_at desc, c.id desc
        limit :row_limit
    ) key
    order by key.created_at desc, key.id desc
    limit :row_limit
)
select
    v.id as visitor_id,
    v.has_before,
    (extract(epoch from p.created_at) * 1000000)::bigint as position,
    d.*,
    contact.*,
    owner.*,
    author.*,
    editor.*,
    stage.*
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
order by p.created_at desc, p.id desc;

-- name: list_by_status_and_updated_at_ascending
with visitor as materialized (
    select
        v.id,
        :look_behind and exists (
            select
            from contacts x
            cross join unnest(:statuses::text[]) as wanted (status)
            cross join lateral (
                select
                from cases c
                where c.organization_id = :organization_id
                    and c.contact_id = x.id
                    and c.status = wanted.status
                    and (c.updated_at, c.id) <= (:after::timestamptz, :after_id::uuid)
                    and c.updated_at >= :updated_since::timestamptz
                    and c.created_at >= :created_since::timestamptz
                    and c.created_at < :created_until::timestamptz
                    and array_position(:facets::smallint[], c.facet) is not null
                order by c.updated_at desc, c.id desc
                limit 1
            ) before
            where x.organization_id = :organization_id
                and x.visitor_id = v.id
        ) as has_before
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
heads as materialized (
    select x.id as contact_id, wanted.status, head.updated_at, head.id
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:statuses::text[]) as wanted (status)
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = x.id
            and c.status = wanted.status
            and (c.updated_at, c.id) > (:after::timestamptz, :after_id::uuid)
            and c.updated_at < :updated_until::timestamptz
            and c.created_at >= :created_since::timestamptz
            and c.created_at < :created_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.updated_at, c.id
        limit 1
    ) head
    order by head.updated_at, head.id
    limit :row_limit
),
page as materialized (
    select key.updated_at, key.id
    from heads h
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = h.contact_id
            and c.status = h.status
            and (c.updated_at, c.id) >= (h.updated_at, h.id)
            and c.updated_at < :updated_until::timestamptz
            and c.created_at >= :created_since::timestamptz
            and c.created_at < :created_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.updated_at, c.id
        limit :row_limit
    ) key
    order by key.updated_at, key.id
    limit :row_limit
)
select
    v.id as visitor_id,
    v.has_before,
    (extract(epoch from p.updated_at) * 1000000)::bigint as position,
    d.*,
    contact.*,
    owner.*,
    author.*,
    editor.*,
    stage.*
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
order by p.updated_at, p.id;

-- name: list_by_status_and_updated_at_descending
with visitor as materialized (
    select
        v.id,
        :look_behind and exists (
            select
            from contacts x
            cross join unnest(:statuses::text[]) as wanted (status)
            cross join lateral (
                select
                from cases c
                where c.organization_id = :organization_id
                    and c.contact_id = x.id
                    and c.status = wanted.status
                    and (c.updated_at, c.id) >= (:after::timestamptz, :after_id::uuid)
                    and c.updated_at < :updated_until::timestamptz
                    and c.created_at >= :created_since::timestamptz
                    and c.created_at < :created_until::timestamptz
                    and array_position(:facets::smallint[], c.facet) is not null
                order by c.updated_at, c.id
                limit 1
            ) before
            where x.organization_id = :organization_id
                and x.visitor_id = v.id
        ) as has_before
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
heads as materialized (
    select x.id as contact_id, wanted.status, head.updated_at, head.id
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
    cross join unnest(:statuses::text[]) as wanted (status)
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = x.id
            and c.status = wanted.status
            and (c.updated_at, c.id) < (:after::timestamptz, :after_id::uuid)
            and c.updated_at >= :updated_since::timestamptz
            and c.created_at >= :created_since::timestamptz
            and c.created_at < :created_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.updated_at desc, c.id desc
        limit 1
    ) head
    order by head.updated_at desc, head.id desc
    limit :row_limit
),
page as materialized (
    select key.updated_at, key.id
    from heads h
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = h.contact_id
            and c.status = h.status
            and (c.updated_at, c.id) <= (h.updated_at, h.id)
            and c.updated_at >= :updated_since::timestamptz
            and c.created_at >= :created_since::timestamptz
            and c.created_at < :created_until::timestamptz
            and array_position(:facets::smallint[], c.facet) is not null
        order by c.updated_at desc, c.id desc
        limit :row_limit
    ) key
    order by key.updated_at desc, key.id desc
    limit :row_limit
)
select
    v.id as visitor_id,
    v.has_before,
    (extract(epoch from p.updated_at) * 1000000)::bigint as position,
    d.*,
    contact.*,
    owner.*,
    author.*,
    editor.*,
    stage.*
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
order by p.updated_at desc, p.id desc;

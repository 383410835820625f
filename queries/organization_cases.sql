-- The cases of an organization, with or without a contact: page by page, and one by one.
--
-- These are templates. "The same whole" and "the same joins" stand for the columns and joins of a page of cases.sql.
-- From the first one, store/organization_pages.py derives statements with another time column, direction, or source of
-- keys: all cases, those of some contacts or of a visitor, or the one with a number.
--   wanted  the sources of keys in order, from an index: all cases of the organization, or each contact
--   page    the next :row_limit keys after (:after, :after_id), up to :furthest; the last one shows that there is more
-- Filters are checked key by key: a filter that few cases pass reads on until the page is full.

-- name: list_organization_cases
with page as materialized (
    select key.moment, key.id
    from (select null::uuid as id) wanted
    cross join lateral (
        select c.created_at as moment, c.id
        from cases c
        where c.organization_id = :organization_id
            and (c.created_at, c.id) > (:after::timestamptz, :after_id::uuid)
            and c.created_at <= :furthest::timestamptz
            and c.updated_at >= :updated_since::timestamptz
            and c.updated_at < :updated_until::timestamptz
            and c.status = any(:statuses::text[])
            and c.priority = any(:priorities::smallint[])
            and c.channel_number = any(:channels::smallint[])
            and (:any_contact or c.contact_id = any(:contact_ids::uuid[]) or (:no_contact and c.contact_id is null))
            and (:any_owner or c.owner_id = any(:owner_ids::uuid[]) or (:no_owner and c.owner_id is null))
            and (
                :external_id::text is null
                or exists (
                    select
                    from contacts x
                    join visitors v on v.organization_id = :organization_id and v.id = x.visitor_id
                    where x.organization_id = :organization_id
                        and x.id = c.contact_id
                        and v.external_id = :external_id::text
                )
            )
        order by c.created_at, c.id
        limit :row_limit
    ) key
    order by key.moment, key.id
    limit :row_limit
)
select
    b.has_before,
    (select count(*) = :row_limit from page) as has_after,
    -- the same whole
    d.id
from (
    select :look_behind::boolean and exists (
        select
        from (select null::uuid as id) wanted
        cross join lateral (
            select
            from cases c
            where c.organization_id = :organization_id
                and (c.created_at, c.id) <= (:after::timestamptz, :after_id::uuid)
                and c.created_at >= :rearmost::timestamptz
                and c.updated_at >= :updated_since::timestamptz
                and c.updated_at < :updated_until::timestamptz
                and c.status = any(:statuses::text[])
                and c.priority = any(:priorities::smallint[])
                and c.channel_number = any(:channels::smallint[])
                and (:any_contact or c.contact_id = any(:contact_ids::uuid[]) or (:no_contact and c.contact_id is null))
                and (:any_owner or c.owner_id = any(:owner_ids::uuid[]) or (:no_owner and c.owner_id is null))
                and (
                    :external_id::text is null
                    or exists (
                        select
                        from contacts x
                        join visitors v on v.organization_id = :organization_id and v.id = x.visitor_id
                        where x.organization_id = :organization_id
                            and x.id = c.contact_id
                            and v.external_id = :external_id::text
                    )
                )
            order by c.created_at desc, c.id desc
            limit 1
        ) behind
    ) as has_before
) b
left join (select n.moment, n.id from page n order by n.moment, n.id limit :row_limit - 1) p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
-- the same joins
order by p.moment, p.id;

-- name: get_case_of_organization
-- No row: the organization has no such case.
select
    -- the same whole
    d.id
from cases d
-- the same joins
where d.organization_id = :organization_id and d.id = :case_id::uuid;

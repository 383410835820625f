-- The cases of a visitor. Every statement names the organization in every table it reads.
--
-- A page is found in these steps, so that its cost depends on the number of contacts and the size of the page, and
-- not on how many cases there are or how deep the page lies:
--   streams  what gives keys in order, from an index: each contact. A stream's share is what it would have to give if
--            all gave the same.
--   nearest  the share of each stream, one index descent each, and of these the :row_limit nearest keys. Where there
--            are that many, no key of the page lies beyond the last of them.
--   page     these, and what the streams that gave their whole share hold behind it, not beyond that last one: the
--            bound, which is a column because row security lets nothing but plain comparisons reach an index.
--   then     the whole cases, for the keys of the page alone; where :whole says so, since to tell whether a page has
--            changed their hashes do.
-- Keys lie behind (:after, :after_id) in the direction of the statement, up to :furthest. Without a cursor, :after is
-- the infinity that everything lies behind, and nothing is to be looked for on the other side of it, down to :rearmost.
-- There the contact of the case that the cursor names is asked first: as a rule that one case is the answer.
-- What :with_… says is not wanted is looked up with a null, which is no look-up.
-- No row: no such visitor. One row whose id is null: a visitor without cases here.

-- name: list_by_created_at_ascending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
),
nearest as materialized (
    select s.contact_id, s.share, key.created_at, key.id
    from streams s
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and (c.created_at, c.id) > (:after, :after_id)
            and c.created_at <= :furthest
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
        window stream as (partition by n.contact_id order by n.created_at, n.id)
    ) last
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and (c.created_at, c.id) > (last.created_at, last.id)
            and c.created_at <= last.bound
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
            select s.contact_id
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
                and (c.created_at, c.id) <= (:after, :after_id)
                and c.created_at >= :rearmost
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

-- name: list_by_created_at_descending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
),
nearest as materialized (
    select s.contact_id, s.share, key.created_at, key.id
    from streams s
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and (c.created_at, c.id) < (:after, :after_id)
            and c.created_at >= :furthest
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
        window stream as (partition by n.contact_id order by n.created_at desc, n.id desc)
    ) last
    cross join lateral (
        select c.created_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and (c.created_at, c.id) < (last.created_at, last.id)
            and c.created_at >= last.bound
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
            select s.contact_id
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
                and (c.created_at, c.id) >= (:after, :after_id)
                and c.created_at <= :rearmost
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

-- name: list_by_updated_at_ascending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
),
nearest as materialized (
    select s.contact_id, s.share, key.updated_at, key.id
    from streams s
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and (c.updated_at, c.id) > (:after, :after_id)
            and c.updated_at <= :furthest
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
        window stream as (partition by n.contact_id order by n.updated_at, n.id)
    ) last
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and (c.updated_at, c.id) > (last.updated_at, last.id)
            and c.updated_at <= last.bound
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
            select s.contact_id
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
                and (c.updated_at, c.id) <= (:after, :after_id)
                and c.updated_at >= :rearmost
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

-- name: list_by_updated_at_descending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        (count(*) over () + :row_limit - 1) / count(*) over () as share
    from visitor v
    join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
),
nearest as materialized (
    select s.contact_id, s.share, key.updated_at, key.id
    from streams s
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and (c.updated_at, c.id) < (:after, :after_id)
            and c.updated_at >= :furthest
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
        window stream as (partition by n.contact_id order by n.updated_at desc, n.id desc)
    ) last
    cross join lateral (
        select c.updated_at, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and (c.updated_at, c.id) < (last.updated_at, last.id)
            and c.updated_at >= last.bound
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
            select s.contact_id
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
                and (c.updated_at, c.id) >= (:after, :after_id)
                and c.updated_at <= :rearmost
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

-- name: get_case
-- The same for one case: no row is no such visitor, a row whose id is null no such case of this visitor.
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
page as materialized (
    select c.id
    from visitor v
    join cases c on c.organization_id = :organization_id and c.id = :case_id::uuid
    join contacts x on x.organization_id = :organization_id and x.id = c.contact_id and x.visitor_id = v.id
)
select
    v.id as visitor_id,
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
    and stage."case_funnel_stage.id" = case when :with_case_funnel_stage then d.case_funnel_stage_id end;

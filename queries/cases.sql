-- The cases of a visitor. Every statement names the organization in every table it reads.
--
-- A page is found in these steps, so that its cost depends on the number of contacts and the size of the page, and
-- not on how many cases there are or how deep the page lies:
--   streams  the sources of keys in order, each from an index: one per contact, or one per contact and value that a
--            filter lists. A stream's share is the number of keys it would give if all gave the same and there were to be
--            twice as many as the page needs: of one or two streams, each gives a page, and of the others half may give
--            nothing. The contacts are found by themselves (offset 0): in a join, the planner reads all contacts of the
--            organization first where most organizations have only one.
--   nearest  the share of each stream, one index descent each, and of these the :row_limit nearest keys. If there are
--            that many, no key of the page lies beyond the last of them.
--   page     these keys, and, unless a share is a page, further keys of the streams that gave their whole share, up to
--            that last one: the bound, which is a column because row security lets only plain comparisons reach an index.
--   then     the cases and their nested objects, for the keys of the page alone. These keys are sorted before anything
--            is joined to them, and the joins keep the order: sorting the wide rows would cost a tenth of the whole.
-- Keys lie after (:after, :after_id) in the direction of the statement, up to :furthest. On the first page :after is
-- the infinity before all keys. The key beyond the page shows that there is more, and is not joined. On the other side,
-- down to :rearmost, the contact of the cursor's case is checked first: usually that one case is the answer.
-- No row: no such visitor. One row with a null id: a visitor without cases here.
--
-- The first statement is a template, and runs as it is: cases of some statuses by their creation, ascending. From it,
-- cases_service/store/page_statements.py derives statements with another time column, direction or filter's index,
-- which keep some parts: lines that end in "if" and a part, and the lines between such a comment and its "end". `make
-- queries` prints the results. The parts:
--   index     a filter's index gives the keys
--   others    there are more filters than the index covers: each key's case is checked, one by one
--   behind    there is a cursor, and so possibly cases on its other side
--   versions  the transaction that wrote each row, which tells whether the row has been written since
--   whole     the columns of the cases
--   alone     versions without whole cases
-- and the nested objects by their names.

-- name: list_by_status_and_created_at_ascending
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
streams as materialized (
    select
        x.id as contact_id,
        wanted.value,  -- if index
        least((2 * :row_limit - 1) / count(*) over () + 1, :row_limit) as share
    from visitor v
    cross join lateral (
        select o.id
        from contacts o
        where o.organization_id = :organization_id and o.visitor_id = v.id
        offset 0
    ) x
    cross join unnest(:statuses::text[]) as wanted (value)  -- if index
),
nearest as materialized (
    select
        s.contact_id,
        s.value,  -- if index
        s.share,
        key.moment,
        key.id
    from streams s
    cross join lateral (
        select c.created_at as moment, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = s.contact_id
            and c.status = s.value  -- if index
            and (c.created_at, c.id) > (:after, :after_id)
            and c.created_at <= :furthest
            -- if others
            and (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)  -- if priority, channel
                    and w.priority = any(:priorities)  -- if status, channel
                    and w.channel_number = any(:channels)  -- if status, priority
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            )
            -- end
        order by c.created_at, c.id
        limit s.share
    ) key
    order by key.moment, key.id
    limit :row_limit
),
page as materialized (
    select n.moment, n.id
    from nearest n
    union all
    select key.moment, key.id
    from (
        select
            n.*,
            row_number() over stream as place,
            coalesce((select max(n.moment) from nearest n having count(*) = :row_limit), :furthest) as bound
        from nearest n
        where exists (select from streams s where s.share < :row_limit)
        window stream as (
            partition by
                n.value,  -- if index
                n.contact_id
            order by n.moment, n.id
        )
    ) last
    cross join lateral (
        select c.created_at as moment, c.id
        from cases c
        where c.organization_id = :organization_id
            and c.contact_id = last.contact_id
            and c.status = last.value  -- if index
            and (c.created_at, c.id) > (last.moment, last.id)
            and c.created_at <= last.bound
            -- if others
            and (
                select
                    w.updated_at >= :updated_since
                    and w.updated_at < :updated_until
                    and w.status = any(:statuses)  -- if priority, channel
                    and w.priority = any(:priorities)  -- if status, channel
                    and w.channel_number = any(:channels)  -- if status, priority
                from cases w
                where w.organization_id = :organization_id and w.id = c.id
            )
            -- end
        order by c.created_at, c.id
        limit :row_limit
    ) key
    where last.place = last.share
    order by moment, id
    limit :row_limit
)
select
    p.visitor_id,
    p.moment,
    (select count(*) = :row_limit from page) as has_after,
    -- if behind
    exists (
        select
        from (
            select
                s.value,  -- if index
                s.contact_id
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
                and c.status = s.value  -- if index
                and (c.created_at, c.id) <= (:after, :after_id)
                and c.created_at >= :rearmost
                -- if others
                and (
                    select
                        w.updated_at >= :updated_since
                        and w.updated_at < :updated_until
                        and w.status = any(:statuses)  -- if priority, channel
                        and w.priority = any(:priorities)  -- if status, channel
                        and w.channel_number = any(:channels)  -- if status, priority
                    from cases w
                    where w.organization_id = :organization_id and w.id = c.id
                )
                -- end
            order by c.created_at desc, c.id desc
            limit 1
        ) behind
    ) as has_before,
    -- end
    -- if versions
    d.xmin as version,
    contact.xmin as "contact.version",
    owner.xmin as "owner.version",
    author.xmin as "created_by_user.version",
    editor.xmin as "updated_by_user.version",
    stage.xmin as "case_funnel_stage.version",
    d.updated_at,  -- if alone
    contact.updated_at as "contact.updated_at",  -- if alone
    -- end
    -- if whole
    d.organization_id,
    d.case_number,
    d.contact_id,
    d.owner_id,
    d.subject,
    d.description,
    d.status,
    d.priority,
    d.latest_messaging_channel,
    d.is_closed,
    d.closed_at,
    d.is_waiting,
    d.unread_message_count,
    d.created_at,
    d.updated_at,
    d.created_by_user_id,
    d.updated_by_user_id,
    d.case_funnel_stage_id,
    d.channel_priority,
    d.visitor_unread_message_count,
    -- if contact
    contact.first_name as "contact.first_name",
    contact.last_name as "contact.last_name",
    contact.full_name as "contact.full_name",
    contact.email as "contact.email",
    contact.phone as "contact.phone",
    contact.created_at as "contact.created_at",
    contact.updated_at as "contact.updated_at",
    -- end
    -- if owner
    owner.email as "owner.email",
    owner.first_name as "owner.first_name",
    owner.last_name as "owner.last_name",
    owner.full_name as "owner.full_name",
    owner.alias as "owner.alias",
    owner.title as "owner.title",
    owner.avatar_url as "owner.avatar_url",
    -- end
    -- if created_by_user
    author.email as "created_by_user.email",
    author.first_name as "created_by_user.first_name",
    author.last_name as "created_by_user.last_name",
    author.full_name as "created_by_user.full_name",
    author.alias as "created_by_user.alias",
    author.title as "created_by_user.title",
    author.avatar_url as "created_by_user.avatar_url",
    -- end
    -- if updated_by_user
    editor.email as "updated_by_user.email",
    editor.first_name as "updated_by_user.first_name",
    editor.last_name as "updated_by_user.last_name",
    editor.full_name as "updated_by_user.full_name",
    editor.alias as "updated_by_user.alias",
    editor.title as "updated_by_user.title",
    editor.avatar_url as "updated_by_user.avatar_url",
    -- end
    -- if case_funnel_stage
    stage.name as "case_funnel_stage.name",
    stage.position as "case_funnel_stage.position",
    -- end
    -- end
    p.id
from (
    select v.id as visitor_id, k.moment, k.id
    from visitor v
    left join page k on true
    order by k.moment, k.id
    limit :row_limit - 1
) p
left join cases d on d.organization_id = :organization_id and d.id = p.id
-- if joins
left join contacts contact  -- if contact
    on contact.organization_id = :organization_id and contact.id = d.contact_id  -- if contact
left join users owner  -- if owner
    on owner.organization_id = :organization_id and owner.id = d.owner_id  -- if owner
left join users author  -- if created_by_user
    on author.organization_id = :organization_id and author.id = d.created_by_user_id  -- if created_by_user
left join users editor  -- if updated_by_user
    on editor.organization_id = :organization_id and editor.id = d.updated_by_user_id  -- if updated_by_user
left join case_funnel_stages stage  -- if case_funnel_stage
    on stage.organization_id = :organization_id and stage.id = d.case_funnel_stage_id  -- if case_funnel_stage
-- end
order by p.moment, p.id;

-- name: get_case
-- The same for one case. No row: no such visitor. A row with a null id: no such case of this visitor. "The same" stands
-- for the lines of that part above.
with visitor as materialized (
    select v.id
    from visitors v
    where v.organization_id = :organization_id
        and v.external_id = :external_id
),
page as materialized (
    select c.id
    from visitor v
    cross join cases c
    where c.organization_id = :organization_id
        and c.id = :case_id::uuid
        and (
            select true
            from contacts x
            where x.organization_id = :organization_id and x.visitor_id = v.id and x.id = c.contact_id
        )
)
select
    v.id as visitor_id,
    -- the same whole
    p.id
from visitor v
left join page p on true
left join cases d on d.organization_id = :organization_id and d.id = p.id
-- the same joins
;

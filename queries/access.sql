-- The caller's organization, and the keys that may verify the visitor's JWT.

-- name: get_access
-- The organization of a valid API token with its live signing keys: one row per key, or one with nulls without keys.
-- No row: the token is unknown, revoked or expired.
-- It uses the clock and not now(), which is read before the snapshot is taken: if a transaction retired a key in
-- between, its result would be seen with the key still live.
select
    o.subscription_status = 'active'
        and (o.subscription_ends_at is null or o.subscription_ends_at > clock_timestamp()) as subscription_active,
    k.id,
    k.algorithm,
    k.encrypted_secret,
    k.public_key,
    t.scopes,
    t.user_id,
    t.id as token_id
from api_tokens t
join organizations o on o.organization_id = :organization_id
left join signing_keys k
    on k.organization_id = :organization_id
    and (k.retired_at is null or k.retired_at > clock_timestamp())
where t.organization_id = :organization_id
    and t.token_hash = :token_hash
    and t.revoked_at is null
    and (t.expires_at is null or t.expires_at > clock_timestamp())
order by k.created_at, k.id;

-- name: get_visitor
-- The visitor of an external id with their contacts, in order. No row: no such visitor.
select
    v.id,
    (
        select array_agg(x.id order by x.id)::text
        from contacts x
        where x.organization_id = :organization_id and x.visitor_id = v.id
    )
from visitors v
where v.organization_id = :organization_id
    and v.external_id = :external_id;

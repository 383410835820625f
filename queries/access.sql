-- Who asks, and what may verify the visitor's JWT.

-- name: get_access
-- The organization of a valid API token with its live signing keys: a row for each, one with nulls where it has none.
-- No row: the token is unknown, revoked or expired.
select
    o.subscription_status = 'active'
        and (o.subscription_ends_at is null or o.subscription_ends_at > now()) as subscription_active,
    k.id,
    k.algorithm,
    k.encrypted_secret,
    k.public_key,
    t.scopes,
    t.user_id
from api_tokens t
join organizations o on o.organization_id = :organization_id
left join signing_keys k
    on k.organization_id = :organization_id
    and (k.retired_at is null or k.retired_at > now())
where t.organization_id = :organization_id
    and t.token_hash = :token_hash
    and t.revoked_at is null
    and (t.expires_at is null or t.expires_at > now())
order by k.created_at, k.id;

-- Whatever locks organizations out of the service, now or soon: for all organizations, which only commands may see.

-- name: list_retiring_keys_everywhere
-- Also whether their organization has another one that stays.
select
    k.organization_id,
    k.id,
    k.retired_at,
    exists (
        select from signing_keys other where other.organization_id = k.organization_id and other.retired_at is null
    ) as has_successor
from signing_keys k
where k.retired_at > now()
    and k.retired_at <= now() + :within::interval
order by k.retired_at, k.organization_id, k.id;

-- name: list_live_secrets_everywhere
select organization_id, id, algorithm, encrypted_secret
from signing_keys
where encrypted_secret is not null
    and (retired_at is null or retired_at > now())
order by organization_id, id;

-- name: list_ending_tokens_everywhere
select organization_id, id, expires_at
from api_tokens
where revoked_at is null
    and expires_at > now()
    and expires_at <= now() + :within::interval
order by expires_at, organization_id, id;

-- name: has_live_token_anywhere
select exists (
    select organization_id from api_tokens where revoked_at is null and (expires_at is null or expires_at > now()) limit 1
);

-- name: has_live_key_anywhere
select exists (
    select organization_id from signing_keys where retired_at is null or retired_at > now() limit 1
);

-- name: list_late_feeds_everywhere
select organization_id, last_at, usual_pause
from late_feeds
order by last_at, organization_id;

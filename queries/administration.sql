-- The commands create, read, revoke and retire tokens and keys with these.

-- name: lock_organization
-- Also serializes the creation of keys, so that two at once cannot exceed the limit of live keys together.
select organization_id
from organizations
where organization_id = :organization_id
for update;

-- name: has_user
select exists (
    select from users where organization_id = :organization_id and id = :user_id
);

-- name: has_organization
select exists (
    select from organizations where organization_id = :organization_id
);

-- name: list_organizations
select organization_id, name, subscription_status, subscription_ends_at
from organizations
order by name, organization_id;

-- name: has_active_subscription
-- As in get_access. No row: there is no such organization.
select subscription_status = 'active' and (subscription_ends_at is null or subscription_ends_at > now())
from organizations
where organization_id = :organization_id;

-- name: list_users
select id, email, first_name, last_name
from users
where organization_id = :organization_id
order by email, last_name, first_name, id;

-- name: list_tokens
select id, user_id, scopes, description, created_at, expires_at, revoked_at, last_used_at
from api_tokens
where organization_id = :organization_id
order by created_at, id;

-- name: list_keys
select id, algorithm, created_at, retired_at, last_used_at
from signing_keys
where organization_id = :organization_id
order by created_at, id;

-- name: add_token!
insert into api_tokens (organization_id, id, user_id, token_hash, scopes, description, expires_at)
values (:organization_id, :id, :user_id, :token_hash, :scopes, :description, :expires_at);

-- name: revoke_token
-- Revoking twice keeps the first time. (Citus takes no now() inside of coalesce.)
update api_tokens
set revoked_at = least(revoked_at, now())
where organization_id = :organization_id and id = :id
returning id;

-- name: revoke_tokens_described!
update api_tokens
set revoked_at = now()
where organization_id = :organization_id
    and description = :description
    and revoked_at is null;

-- name: count_live_keys
select count(*)
from signing_keys
where organization_id = :organization_id
    and (retired_at is null or retired_at > now());

-- name: list_live_keys
select id, algorithm, encrypted_secret, public_key
from signing_keys
where organization_id = :organization_id
    and (retired_at is null or retired_at > now())
order by created_at, id;

-- name: add_key!
insert into signing_keys (organization_id, id, algorithm, encrypted_secret, public_key)
values (:organization_id, :id, :algorithm, :encrypted_secret, :public_key);

-- name: retire_key
-- A retirement is never undone; one planned for later may be moved to now.
update signing_keys
set retired_at = least(retired_at, now())
where organization_id = :organization_id and id = :id
returning id;

-- name: list_organizations_with_secrets
select distinct organization_id
from signing_keys
where encrypted_secret is not null
order by organization_id;

-- name: list_secrets
-- Locked in the order in which a load writes them.
select id, encrypted_secret
from signing_keys
where organization_id = :organization_id
    and encrypted_secret is not null
order by id
for update;

-- name: replace_secret!
update signing_keys
set encrypted_secret = :encrypted_secret
where organization_id = :organization_id and id = :id;

-- name: count_contacts
-- No row: no such visitor.
select count(x.id)
from visitors v
left join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
where v.organization_id = :organization_id
    and v.external_id = :external_id
group by v.id;

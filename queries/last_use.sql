-- Records when API tokens and signing keys were last used: at most once a minute for each, however many processes use
-- it. A row that another session is changing is skipped: there will be another use.

-- name: record_token_uses!
update api_tokens t
set last_used_at = now()
from (
    select due.id
    from api_tokens due
    where due.organization_id = :organization_id
        and due.token_hash = any(:token_hashes::bytea[])
        and (due.last_used_at is null or due.last_used_at < now() - interval '1 minute')
    for no key update skip locked
) used
where t.organization_id = :organization_id and t.id = used.id;

-- name: record_key_uses!
update signing_keys k
set last_used_at = now()
from (
    select due.id
    from signing_keys due
    where due.organization_id = :organization_id
        and due.id = any(:key_ids::uuid[])
        and (due.last_used_at is null or due.last_used_at < now() - interval '1 minute')
    for no key update skip locked
) used
where k.organization_id = :organization_id and k.id = used.id;

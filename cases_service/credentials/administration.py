"""Creates, lists and revokes API tokens and signing keys, for the commands of `cli`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from cases_service.credentials import signing_keys
from cases_service.credentials.api_tokens import ApiToken, new_token
from cases_service.credentials.scopes import DEFAULT_SCOPES, SCOPES
from cases_service.credentials.secret_encryption import SecretBox, SecretNotOpenedError
from cases_service.database.statements import statements
from cases_service.store.cases import StoredKey

_STATEMENTS: Final = statements("administration")

Connection = psycopg.Connection[tuple[Any, ...]]


class AdministrationError(Exception):
    """The operation is impossible. The message says why, in one line."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. `secret` is shown once; None for an asymmetric key."""

    kid: UUID
    algorithm: str
    secret: str | None


@dataclass(frozen=True, slots=True)
class KnownOrganization:
    """An organization, and whether it may use the service."""

    id: UUID
    name: str
    subscription_status: str
    subscription_ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user of an organization, as needed to choose the owner of a token."""

    id: UUID
    email: str | None
    first_name: str | None
    last_name: str | None


@dataclass(frozen=True, slots=True)
class KnownToken:
    """An API token without the token itself and its hash."""

    id: UUID
    user_id: UUID
    scopes: list[str]
    description: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A signing key without its material."""

    kid: UUID
    algorithm: str
    created_at: datetime
    retired_at: datetime | None
    last_used_at: datetime | None


def create_token(
    connection: Connection,
    *,
    organization_id: UUID,
    user_id: UUID,
    scopes: Collection[str] = DEFAULT_SCOPES,
    description: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[UUID, str]:
    """Create an API token for a user of an organization; return its id and the token, which is not stored."""
    if not _one(connection, "has_user", organization_id=organization_id, user_id=user_id):
        raise AdministrationError(f"organization {organization_id} has no user {user_id}")
    token_id, text = uuid4(), new_token(organization_id)
    token = ApiToken.parse(text)
    if token is None:
        raise AssertionError("a new token is well-formed")
    connection.execute(
        _STATEMENTS["add_token"],
        {
            "organization_id": organization_id,
            "id": token_id,
            "user_id": user_id,
            "token_hash": token.hash,
            "scopes": [scope for scope in SCOPES if scope in scopes],
            "description": description,
            "expires_at": expires_at,
        },
    )
    return token_id, text


def revoke_token(connection: Connection, *, organization_id: UUID, token_id: UUID) -> None:
    """Revoke an API token from the next request on. Safe to repeat."""
    if _one(connection, "revoke_token", organization_id=organization_id, id=token_id) is None:
        raise AdministrationError(f"organization {organization_id} has no API token {token_id}")


def revoke_tokens_described(connection: Connection, *, organization_id: UUID, description: str) -> None:
    """Revoke all API tokens of an organization with this description."""
    connection.execute(
        _STATEMENTS["revoke_tokens_described"], {"organization_id": organization_id, "description": description}
    )


def create_key(
    connection: Connection, *, organization_id: UUID, algorithm: str, public_key: str | None, box: SecretBox
) -> NewKey:
    """Create a signing key: with a new secret for an HMAC algorithm, else with a public key in PEM.

    Raises:
        KeyMaterialError: The public key does not fit the algorithm.
        NoSecretKeyError: A secret has to be encrypted, but no secret key is configured.

    """
    key_id = uuid4()
    secret = signing_keys.new_secret() if public_key is None else None
    if public_key is not None:
        signing_keys.check_public_key(public_key, algorithm=algorithm)
    sealed = secret and box.seal(secret, organization_id=organization_id, key_id=key_id, algorithm=algorithm)
    with connection.transaction():
        if _one(connection, "lock_organization", organization_id=organization_id) is None:
            raise AdministrationError(f"there is no organization {organization_id}")
        if _one(connection, "count_live_keys", organization_id=organization_id) >= signing_keys.MAXIMUM_LIVE_KEYS:
            raise AdministrationError(
                f"organization {organization_id} has {signing_keys.MAXIMUM_LIVE_KEYS} live signing keys,"
                " and that is the limit: retire one first"
            )
        connection.execute(
            _STATEMENTS["add_key"],
            {
                "organization_id": organization_id,
                "id": key_id,
                "algorithm": algorithm,
                "encrypted_secret": sealed,
                "public_key": public_key,
            },
        )
    return NewKey(key_id, algorithm, secret)


def retire_key(connection: Connection, *, organization_id: UUID, key_id: UUID) -> None:
    """Retire a signing key from the next request on. Safe to repeat."""
    if _one(connection, "retire_key", organization_id=organization_id, id=key_id) is None:
        raise AdministrationError(f"organization {organization_id} has no signing key {key_id}")


def live_keys(connection: Connection, *, organization_id: UUID) -> Sequence[StoredKey]:
    """Return an organization's live keys, the oldest first.

    Raises:
        AdministrationError: The organization does not exist.

    """
    return [StoredKey(*row) for row in _list(connection, "list_live_keys", organization_id)]


def open_secret(key: StoredKey, *, organization_id: UUID, box: SecretBox) -> str:
    """Return the secret of an HMAC key.

    Raises:
        AdministrationError: No configured key decrypts it.

    """
    try:
        return box.open(
            key.encrypted_secret or "", organization_id=organization_id, key_id=key.id, algorithm=key.algorithm
        )
    except SecretNotOpenedError:
        raise _not_opened(key.id) from None


def list_organizations(connection: Connection) -> list[KnownOrganization]:
    """Return all organizations, sorted by name."""
    return [KnownOrganization(*row) for row in connection.execute(_STATEMENTS["list_organizations"]).fetchall()]


def list_users(connection: Connection, *, organization_id: UUID) -> list[KnownUser]:
    """Return all users of an organization, sorted by e-mail address and name."""
    return [KnownUser(*row) for row in _list(connection, "list_users", organization_id)]


def list_tokens(connection: Connection, *, organization_id: UUID) -> list[KnownToken]:
    """Return all API tokens of an organization, revoked and expired ones included, the oldest first."""
    return [KnownToken(*row) for row in _list(connection, "list_tokens", organization_id)]


def list_keys(connection: Connection, *, organization_id: UUID) -> list[KnownKey]:
    """Return all signing keys of an organization, retired ones included, the oldest first."""
    return [KnownKey(*row) for row in _list(connection, "list_keys", organization_id)]


def rotate_secrets(connection: Connection, *, box: SecretBox) -> int:
    """Re-encrypt every stored secret with the first secret key, all or none; return their number."""
    with connection.transaction():
        organizations = connection.execute(_STATEMENTS["list_organizations_with_secrets"]).fetchall()
        return sum(_rotate_secrets_of(connection, organization_id, box) for (organization_id,) in organizations)


def _rotate_secrets_of(connection: Connection, organization_id: UUID, box: SecretBox) -> int:
    rows = connection.execute(_STATEMENTS["list_secrets"], {"organization_id": organization_id}).fetchall()
    for key_id, sealed in rows:
        try:
            resealed = box.reseal(sealed)
        except SecretNotOpenedError:
            raise _not_opened(key_id) from None
        parameters = {"organization_id": organization_id, "id": key_id, "encrypted_secret": resealed}
        connection.execute(_STATEMENTS["replace_secret"], parameters)
    return len(rows)


def has_active_subscription(connection: Connection, *, organization_id: UUID) -> bool:
    """Tell whether an organization exists and has an active subscription now."""
    return bool(_one(connection, "has_active_subscription", organization_id=organization_id))


def count_contacts(connection: Connection, *, organization_id: UUID, external_id: str) -> int | None:
    """Return how many contacts a visitor has, or None if the visitor does not exist."""
    count: int | None = _one(connection, "count_contacts", organization_id=organization_id, external_id=external_id)
    return count


def _list(connection: Connection, name: str, organization_id: UUID) -> list[tuple[Any, ...]]:
    rows = connection.execute(_STATEMENTS[name], {"organization_id": organization_id}).fetchall()
    if not rows and not _one(connection, "has_organization", organization_id=organization_id):
        raise AdministrationError(f"there is no organization {organization_id}")
    return rows


def _not_opened(key_id: UUID) -> AdministrationError:
    return AdministrationError(f"the secret of signing key {key_id} opens with none of the keys in CASES_SECRET_KEY")


def _one(connection: Connection, name: str, **parameters: Any) -> Any:
    row = connection.execute(_STATEMENTS[name], parameters).fetchone()
    return None if row is None else row[0]

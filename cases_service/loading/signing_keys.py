"""What a load may do with signing keys: add some, up to a limit, and retire others, but never change one."""

from collections import Counter
from typing import Any, Final, NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS
from cases_service.loading.line_errors import Fault
from cases_service.loading.records import FieldError, SigningKey, organization_of
from cases_service.loading.session import LoadSession

TOO_MANY: Final = Fault("id", f"the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys")


def encrypt_secret(key: SigningKey, box: SecretBox) -> None:
    """Encrypt the secret of a line, if it has one: the server never sees it in clear text.

    Raises:
        FieldError: No secret key is configured.

    """
    if not isinstance(key.secret, str):
        return
    organization_id, key_id = UUID(organization_of(key)), UUID(key.id)
    try:
        key.secret = box.seal(key.secret, organization_id=organization_id, key_id=key_id, algorithm=key.algorithm)
    except NoSecretKeyError as error:
        raise FieldError("secret", f"no secret key is configured: {error}") from None


def lock_signing_keys(session: LoadSession) -> None:
    """Lock out new keys of the organizations until the transaction ends."""
    with session.rows("list_organizations_with_staged_keys") as rows:
        for (organization_id,) in rows:
            session.execute("lock_organization", organization_id=organization_id)


def find_changed_keys(session: LoadSession, box: SecretBox) -> dict[int, Fault]:
    """Return the lines that would change an existing key, in their order, by place."""
    wrong = {}
    with session.rows("list_known_signing_keys") as rows:
        for place, *key in rows:
            try:
                _StagedKey(*key).check(box)
            except FieldError as error:
                wrong[place] = Fault(error.field, error.reason)
    return wrong


def write_signing_keys(session: LoadSession) -> Counter[str]:
    """Add keys and retire existing ones, and return how many of each organization."""
    session.execute("exclude_ended_keys")
    return session.count("write_signing_keys")


def find_key_beyond_limit(session: LoadSession) -> int | None:
    """Return the place of a line whose key, which has been written, is one too many."""
    return session.find_place("find_key_beyond_limit", maximum=MAXIMUM_LIVE_KEYS)


def exclude_keys_beyond_limit(session: LoadSession) -> list[int]:
    """Exclude the lines whose keys would be too many, and return their places."""
    return session.exclude("exclude_keys_beyond_limit", maximum=MAXIMUM_LIVE_KEYS)


class _StagedKey(NamedTuple):
    """A line with an existing signing key, and the stored key."""

    organization_id: str
    id: str
    algorithm: str
    encrypted_secret: str | None
    public_key: str | None
    stored_algorithm: str
    stored_encrypted_secret: str | None
    stored_public_key: str | None
    revived: bool

    def check(self, box: SecretBox) -> None:
        """Raise FieldError if the line changes the key, or would undo its retirement."""
        if self.algorithm != self.stored_algorithm:
            raise FieldError("algorithm", "the algorithm of an existing key never changes")
        if self.stored_encrypted_secret is not None:
            self._check_secret(box)
        elif not _is_same_public_key(self.public_key or "", self.stored_public_key or ""):
            raise FieldError("public_key", "the key material of an existing key never changes")
        if self.revived:
            raise FieldError(
                "retired_at", "the retirement of a key is never undone; give its time, or leave the line out"
            )

    def _check_secret(self, box: SecretBox) -> None:
        label: dict[str, Any] = {
            "organization_id": UUID(self.organization_id),
            "key_id": UUID(self.id),
            "algorithm": self.algorithm,
        }
        try:
            stored = box.open(self.stored_encrypted_secret, **label)
        except SecretNotOpenedError:
            raise FieldError(
                "secret", f"no configured secret key opens what is stored of signing key {self.id}"
            ) from None
        if stored != box.open(self.encrypted_secret, **label):
            raise FieldError("secret", "the key material of an existing key never changes")


def _is_same_public_key(pem: str, stored_pem: str) -> bool:
    try:
        return pem == stored_pem or load_pem_public_key(pem.encode()) == load_pem_public_key(stored_pem.encode())
    except ValueError:
        # Only `load` and create-key check the stored key material.
        return False

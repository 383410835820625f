"""Encrypts stored signing secrets, each bound to its organization, key id and algorithm."""

from collections.abc import Sequence
from functools import lru_cache
from uuid import UUID

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SecretNotOpenedError(Exception):
    """No configured key decrypts a stored secret, or the secret belongs to another signing key.

    The message is the signing key's id, if known.
    """


class NoSecretKeyError(Exception):
    """A secret has to be encrypted, but no secret key is configured."""


class SecretBox:
    """Encrypts secrets with the first of the configured keys, and decrypts with all of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        self.open = lru_cache(maxsize=1024)(self._open)

    def seal(self, secret: str, *, organization_id: UUID, key_id: UUID, algorithm: str) -> str:
        """Return the encrypted secret, as ASCII text."""
        if self._fernet is None:
            raise NoSecretKeyError("set CASES_SECRET_KEY to 32 random bytes in URL-safe base64")
        label = _label(organization_id, key_id, algorithm)
        return self._fernet.encrypt((label + secret).encode()).decode("ascii")

    def reseal(self, sealed: str) -> str:
        """Return an encrypted secret, re-encrypted with the first key."""
        if self._fernet is None:
            raise NoSecretKeyError("set CASES_SECRET_KEY to the new key and the old one, separated by a comma")
        try:
            return self._fernet.rotate(sealed.encode()).decode("ascii")
        except InvalidToken:
            raise SecretNotOpenedError from None

    def _open(self, sealed: str, *, organization_id: UUID, key_id: UUID, algorithm: str) -> str:
        if self._fernet is None:
            raise SecretNotOpenedError(key_id)
        try:
            text = self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SecretNotOpenedError(key_id) from None
        label = _label(organization_id, key_id, algorithm)
        if not text.startswith(label):
            raise SecretNotOpenedError(key_id)
        return text[len(label) :]


def _label(organization_id: UUID, key_id: UUID, algorithm: str) -> str:
    return f"{organization_id}/{key_id}/{algorithm}:"

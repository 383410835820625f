"""API tokens: `cst_`, then URL-safe base64 of the organization, 256 random bits and a checksum.

The organization routes the look-up, the hash of the whole proves the token, and the checksum rejects a mistyped one
without a query.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

_PREFIX: Final = "cst_"
_CHECKSUM_SIZE: Final = 6
_FORM: Final = re.compile(r"cst_[A-Za-z0-9_-]{72}")


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A well-formed token's organization and hash. Only a look-up of the hash proves the token."""

    organization_id: UUID
    hash: bytes

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse a token; return None if it is malformed or mistyped."""
        if not _FORM.fullmatch(text):
            return None
        raw = base64.urlsafe_b64decode(text.removeprefix(_PREFIX))
        body, checksum = raw[:-_CHECKSUM_SIZE], raw[-_CHECKSUM_SIZE:]
        if not secrets.compare_digest(checksum, _checksum(body)):
            return None
        return cls(UUID(bytes=body[:16]), hashlib.sha256(text.encode()).digest())


def new_token(organization_id: UUID) -> str:
    """Return a new token of an organization, 76 characters. It is shown once and not stored."""
    body = organization_id.bytes + secrets.token_bytes(32)
    return _PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode("ascii")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + body).digest()[:_CHECKSUM_SIZE]

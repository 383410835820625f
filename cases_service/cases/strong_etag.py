"""The strong ETag of a case for its organization: it differs after every change (RFC 9110, section 8.8.3)."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

import msgspec

from cases_service import __version__

_RELEASE: Final = __version__.encode()
_DIGEST_BYTES: Final = 16


def tag_of(row: Sequence[Any]) -> str:
    """Return the ETag of a case: it differs after every change of the answer, however small and however quick.

    The hashed values have times to the microsecond, of which an answer shows three decimals. The hash is cryptographic,
    because a person who writes cases could search for two with the same digest.
    """
    return hashlib.blake2b(_RELEASE + msgspec.msgpack.encode(row), digest_size=_DIGEST_BYTES).hexdigest()


def tag_of_some(tag: str, fields: frozenset[str] | None) -> str:
    """Return the ETag of an answer with some attributes; a condition accepts it like the case's own."""
    return tag if fields is None else f"{tag}.{crc32(','.join(sorted(fields)).encode()):08x}"

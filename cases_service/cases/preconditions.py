"""The strong ETag of a case for its organization, and the conditional headers of writes (RFC 9110, section 13.1)."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from zlib import crc32

import msgspec
from werkzeug.datastructures import ETags
from werkzeug.http import parse_etags

from cases_service import __version__
from cases_service.problems import PreconditionFailedError

_RELEASE: Final = __version__.encode()
_DIGEST_BYTES: Final = 16
# The case's own tag, the shown attributes, and a suffix that compressing proxies append.
_TAG: Final = re.compile(r"(([0-9a-f]{32})(?:\.[0-9a-f]{8})?)(?:-gzip|-br|-zstd|;gzip|--gzip)?")


def tag_of(row: Sequence[Any]) -> str:
    """Return the ETag of a case: it differs after every change of the answer, however small and however quick.

    The hashed values have times to the microsecond, of which an answer shows three decimals. The hash is cryptographic,
    because a person who writes cases could search for two with the same digest.
    """
    return hashlib.blake2b(_RELEASE + msgspec.msgpack.encode(row), digest_size=_DIGEST_BYTES).hexdigest()


def tag_of_some(tag: str, fields: frozenset[str] | None) -> str:
    """Return the ETag of an answer with some attributes; a condition accepts it like the case's own."""
    return tag if fields is None else f"{tag}.{crc32(','.join(sorted(fields)).encode()):08x}"


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The conditions of a write on the case (RFC 9110, section 13.1); None means no condition."""

    if_match: ETags | None = None
    if_none_match: ETags | None = None

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> Self:
        """Return the conditions that a request's headers set. A header that cannot be read matches nothing."""
        given = (environ.get(name) for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"))
        return cls(*(None if text is None else parse_etags(text) for text in given))

    @property
    def are_set(self) -> bool:
        """Whether there is any condition."""
        return self.if_match is not None or self.if_none_match is not None

    def check(self, tag: str | None) -> None:
        """Raise PreconditionFailedError unless a case with this ETag (None: no case) meets the conditions.

        If-Match compares strongly: a weak tag matches nothing.
        """
        if self.if_match is not None and not _holds(self.if_match, tag):
            raise PreconditionFailedError
        if self.if_none_match is not None and tag is not None and _names(self.if_none_match, tag):
            raise PreconditionFailedError


def is_known(tags: ETags, tag: str) -> bool:
    """Tell whether If-None-Match has the tag of the answer, compared weakly."""
    return tags.star_tag or any(_read(each)[0] == tag for each in tags.as_set(include_weak=True))


def _holds(tags: ETags, tag: str | None) -> bool:
    return tag is not None and (tags.star_tag or any(_read(strong)[1] == tag for strong in tags.as_set()))


def _names(tags: ETags, tag: str) -> bool:
    return tags.star_tag or any(_read(each)[1] == tag for each in tags.as_set(include_weak=True))


def _read(text: str | None) -> tuple[str, str]:
    """Return a tag without a proxy's suffix, and the tag of the whole case; '' if it has another form.

    Werkzeug turns an empty tag into None.
    """
    found = _TAG.fullmatch(text or "")
    return ("", "") if found is None else (found[1], found[2])

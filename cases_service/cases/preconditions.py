"""The conditional headers of writes, by the strong ETag of a case (RFC 9110, section 13.1)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from werkzeug.datastructures import ETags
from werkzeug.http import parse_etags

from cases_service.problems import PreconditionFailedError

# The case's own tag, the shown attributes, and a suffix that compressing proxies append.
_TAG: Final = re.compile(r"(([0-9a-f]{32})(?:\.[0-9a-f]{8})?)(?:-gzip|-br|-zstd|;gzip|--gzip)?")


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

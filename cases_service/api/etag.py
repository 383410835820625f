"""Answers conditional requests: an ETag on what is shown, and 304 where the caller has it already (RFC 9110)."""

import hashlib
from collections.abc import Callable
from typing import Final

from flask import Request, Response

from cases_service import __version__

# What is represented is data; another release may write it differently.
_RELEASE: Final = __version__.encode()
# What proxies append where they compress: Apache and Caddy, Apache before 2.4, Jetty.
_SUFFIXES: Final = ("", "-gzip", "-br", "-zstd", ";gzip", "--gzip")
_DIGITS: Final = 40


def answer(request: Request, document: Callable[[], bytes], *represented: bytes) -> Response:
    """Return a JSON document with its ETag, or 304 where the request's If-None-Match has it.

    Args:
        request: The request, every check of which has passed.
        document: Makes the body; not called for a 304.
        represented: What the ETag stands for. It is weak, since the body also has links, which follow the caller.
            Who writes cases must not be able to hide a change, so the digest is one for which nobody finds collisions.

    """
    digest = _digest(represented)
    if _has(request, digest):
        return Response(status=304, headers=_headers(digest))
    return Response(document(), headers=_headers(digest), content_type="application/json")


def matches_etag(request: Request, *represented: bytes) -> bool:
    """Tell whether `answer` would be 304."""
    return _has(request, _digest(represented))


def not_modified(*represented: bytes) -> Response:
    """Return what `answer` does where the caller has the document already."""
    return Response(status=304, headers=_headers(_digest(represented)))


def _headers(digest: str) -> list[tuple[str, str]]:
    return [("ETag", f'W/"{digest}"'), ("Cache-Control", "private, no-cache")]


def _has(request: Request, digest: str) -> bool:
    """Tell whether If-None-Match has the ETag, which a proxy may have marked as that of a compressed answer."""
    known = request.if_none_match
    return any(known.contains_weak(digest + suffix) for suffix in _SUFFIXES) if known else known.star_tag


def _digest(represented: tuple[bytes, ...]) -> str:
    digest = hashlib.sha256(_RELEASE)
    for part in represented:
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()[:_DIGITS]

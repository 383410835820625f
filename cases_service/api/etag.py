"""Answers conditional requests: sends an ETag, and 304 if the caller already has the response (RFC 9110)."""

import hashlib
from collections.abc import Callable
from typing import Final

from flask import Request

from cases_service import __version__
from cases_service.api.response import Response

# The hashed values are data, which another release may serialize differently.
_RELEASE: Final = __version__.encode()
# Suffixes that compressing proxies append: Apache and Caddy, Apache before 2.4, Jetty.
_SUFFIXES: Final = ("", "-gzip", "-br", "-zstd", ";gzip", "--gzip")
_DIGITS: Final = 40


def answer(request: Request, document: Callable[[], bytes], *etag_input: bytes) -> Response:
    """Return a JSON document with its ETag, or 304 if the request's If-None-Match has it.

    Args:
        request: The request, which has passed every check.
        document: Makes the body; not called for a 304.
        etag_input: What the ETag is computed from. It is weak, since the body also has links, which depend on the
            caller. Its digest resists collisions, so that nobody who writes cases can hide a change.

    """
    digest = _digest(etag_input)
    if _has(request, digest):
        return Response(status=304, headers=_headers(digest))
    return Response(document(), headers=_headers(digest), content_type="application/json")


def matches_etag(request: Request, *etag_input: bytes) -> bool:
    """Tell whether `answer` would be 304."""
    return _has(request, _digest(etag_input))


def not_modified(*etag_input: bytes) -> Response:
    """Return the 304 of `answer`, for a caller that already has the document."""
    return Response(status=304, headers=_headers(_digest(etag_input)))


def _headers(digest: str) -> list[tuple[str, str]]:
    return [("ETag", f'W/"{digest}"'), ("Cache-Control", "private, no-cache")]


def _has(request: Request, digest: str) -> bool:
    """Tell whether If-None-Match has the ETag, perhaps with the suffix of a compressing proxy."""
    if "HTTP_IF_NONE_MATCH" not in request.environ:
        return False
    known = request.if_none_match
    return any(known.contains_weak(digest + suffix) for suffix in _SUFFIXES) if known else known.star_tag


def _digest(etag_input: tuple[bytes, ...]) -> str:
    digest = hashlib.sha256(_RELEASE)
    for part in etag_input:
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()[:_DIGITS]

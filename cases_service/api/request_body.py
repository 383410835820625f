"""Reads the body of a request, if the route accepts its type and its size."""

import zlib
from collections.abc import Collection
from functools import lru_cache
from typing import Final

from flask import Request
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header

from cases_service.problems import (
    BodyTooLargeError,
    InvalidBodyError,
    OverloadedError,
    ProblemError,
    UnsupportedMediaTypeError,
)

TOO_LARGE: Final = "cases.body_too_large"
"""The WSGI environment's key that is true if the worker discarded the body because it was too large."""

OVERLOADED: Final = "cases.overloaded"
"""Likewise, if other requests' bodies left no room for it."""


_READ: Final = "cases.body"


_GZIP: Final = 16 + zlib.MAX_WBITS
_DAMAGED: Final = "It is no gzip, or a damaged one."


def read_body(
    request: Request, *, media_types: Collection[str], maximum: int, most: str = "", unpacks: bool = False
) -> bytes:
    """Return the body of a request, decompressed if the route accepts gzip.

    It is read once, and the outcome holds for the request. `most` is `maximum` in words, if not 1 MiB.

    Raises:
        UnsupportedMediaTypeError: It has another type, or another compression.
        OverloadedError: The worker had no room for it.
        BodyTooLargeError: It has more bytes than `maximum`, compressed or decompressed.
        InvalidBodyError: It is incomplete, or cannot be decompressed.

    """
    outcome = request.environ.get(_READ)
    if outcome is None:
        try:
            outcome = _checked(request, media_types=media_types, maximum=maximum, most=most, unpacks=unpacks)
        except ProblemError as problem:
            outcome = problem
        request.environ[_READ] = outcome
    if isinstance(outcome, ProblemError):
        raise outcome
    return bytes(outcome)


def _checked(request: Request, *, media_types: Collection[str], maximum: int, most: str, unpacks: bool) -> bytes:
    encoding = request.environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    is_packed = unpacks and encoding in ("gzip", "x-gzip")
    if _media_type(request.environ.get("CONTENT_TYPE", "")) not in media_types or not (
        is_packed or encoding in ("", "identity")
    ):
        types = " or ".join(sorted(media_types))
        raise UnsupportedMediaTypeError(f"Send {types}, as it is or packed by gzip." if unpacks else "")
    if request.environ.get(OVERLOADED):
        raise OverloadedError
    if request.environ.get(TOO_LARGE):
        raise BodyTooLargeError(most)
    try:
        body = _read(request, maximum + 1)
    except (HTTPException, OSError):
        raise InvalidBodyError(errors=[{"pointer": "", "detail": "It did not come whole."}]) from None
    body = _unpacked(body, maximum + 1) if is_packed else body
    if len(body) > maximum:
        raise BodyTooLargeError(most)
    return body


@lru_cache(maxsize=64)
def _media_type(content_type: str) -> str:
    return parse_options_header(content_type)[0].lower()


def _unpacked(packed: bytes, most: int) -> bytes:
    """Return the decompressed bytes of a gzip; of a longer one, only the first bytes."""
    parts: list[bytes] = []
    missing = most
    while packed and missing:
        member = zlib.decompressobj(_GZIP)
        try:
            parts.append(member.decompress(packed, missing))
        except zlib.error:
            raise InvalidBodyError(errors=[{"pointer": "", "detail": _DAMAGED}]) from None
        missing -= len(parts[-1])
        if missing and not member.eof:
            raise InvalidBodyError(errors=[{"pointer": "", "detail": _DAMAGED}])
        packed = member.unused_data
    return b"".join(parts)


def _read(request: Request, most: int) -> bytes:
    """Return the body, or the first `most` bytes of a longer one. It arrives in parts."""
    parts: list[bytes] = []
    missing = most
    # The service's own worker hands over a body that ends by itself.
    stream = request.environ["wsgi.input"] if request.environ.get("wsgi.input_terminated") else request.stream
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)

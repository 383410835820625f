"""Reads the body of a request, if it is of a type that the route takes and no larger than it may be."""

import zlib
from collections.abc import Collection
from typing import Final

from flask import Request
from werkzeug.exceptions import HTTPException

from cases_service.errors import BodyTooLargeError, InvalidBodyError, OverloadedError, UnsupportedMediaTypeError

TOO_LARGE: Final = "cases.body_too_large"
"""In the environ, true where the worker has not kept a body, as it was too large."""

OVERLOADED: Final = "cases.overloaded"
"""Likewise, as the bodies of others left no room for it."""


_GZIP: Final = 16 + zlib.MAX_WBITS
_DAMAGED: Final = "It is no gzip, or a damaged one."


def read_body(
    request: Request, *, media_types: Collection[str], maximum: int, most: str = "", unpacks: bool = False
) -> bytes:
    """Return the body of a request, unpacked where it may come packed by gzip.

    `most` says in words what `maximum` is, where that is not 1 MiB.

    Raises:
        UnsupportedMediaTypeError: It is of another type, or packed in another way.
        OverloadedError: The worker had no room for it.
        BodyTooLargeError: It has more bytes than `maximum`, packed or unpacked.
        InvalidBodyError: It did not come whole, or cannot be unpacked.

    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    is_packed = unpacks and encoding in ("gzip", "x-gzip")
    if request.mimetype not in media_types or not (is_packed or encoding in ("", "identity")):
        types = " or ".join(sorted(media_types))
        raise UnsupportedMediaTypeError(f"Send {types}, as it is or packed by gzip." if unpacks else "")
    if request.environ.get(OVERLOADED):
        raise OverloadedError
    if request.environ.get(TOO_LARGE) or (request.content_length or 0) > maximum:
        raise BodyTooLargeError(most)
    try:
        body = _read(request, maximum + 1)
    except (HTTPException, OSError):
        raise InvalidBodyError(errors=[{"pointer": "", "detail": "It did not come whole."}]) from None
    body = _unpacked(body, maximum + 1) if is_packed else body
    if len(body) > maximum:
        raise BodyTooLargeError(most)
    return body


def _unpacked(packed: bytes, most: int) -> bytes:
    """Return what a gzip holds, of a longer one no more than its first bytes."""
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
    """Return the body, of a longer one no more than its first bytes. A part of it comes at a time."""
    parts: list[bytes] = []
    missing = most
    while missing and (part := request.stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)

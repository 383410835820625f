"""Reads the body of a request, if it is of a type that the route takes and no larger than it may be."""

from collections.abc import Collection
from typing import Final

from flask import Request
from werkzeug.exceptions import HTTPException

from cases_service.errors import (
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


def read_body(request: Request, *, media_types: Collection[str], maximum: int) -> bytes:
    """Return the body of a request. It is read only once; later calls return or raise the same.

    Raises:
        UnsupportedMediaTypeError: It is of another type, or compressed.
        OverloadedError: The worker had no room for it.
        BodyTooLargeError: It has more bytes than `maximum`.
        InvalidBodyError: It did not come whole.

    """
    outcome = request.environ.get(_READ)
    if outcome is None:
        try:
            outcome = _checked(request, media_types=media_types, maximum=maximum)
        except ProblemError as problem:
            outcome = problem
        request.environ[_READ] = outcome
    if isinstance(outcome, ProblemError):
        raise outcome
    return bytes(outcome)


def _checked(request: Request, *, media_types: Collection[str], maximum: int) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if request.mimetype not in media_types or encoding not in ("", "identity"):
        raise UnsupportedMediaTypeError
    if request.environ.get(OVERLOADED):
        raise OverloadedError
    if request.environ.get(TOO_LARGE) or (request.content_length or 0) > maximum:
        raise BodyTooLargeError
    try:
        body = _read(request, maximum + 1)
    except (HTTPException, OSError):
        raise InvalidBodyError(errors=[{"pointer": "", "detail": "It did not come whole."}]) from None
    if len(body) > maximum:
        raise BodyTooLargeError
    return body


def _read(request: Request, most: int) -> bytes:
    """Return the body, or the first `most` bytes of a longer one. It arrives in parts."""
    parts: list[bytes] = []
    missing = most
    while missing and (part := request.stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)

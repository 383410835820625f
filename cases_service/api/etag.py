"""Answers conditional requests: an ETag on what is shown, and 304 where the caller has it already (RFC 9110)."""

from collections.abc import Callable
from typing import Final

from flask import Request, Response
from xxhash import xxh3_128_hexdigest

from cases_service import __version__

# What is represented is data; another release may write it differently.
_RELEASE: Final = __version__.encode()


def answer(request: Request, document: Callable[[], bytes], *represented: bytes) -> Response:
    """Return a JSON document with its ETag, or 304 where the request's If-None-Match has it.

    Args:
        request: The request, every check of which has passed.
        document: Makes the body; not called for a 304.
        represented: What the ETag stands for. It is weak, since the body also has links, which follow the caller.
            Nothing is proven by it, so that a fast digest of 128 bits does.

    """
    digest = _digest(represented)
    headers = [("ETag", f'W/"{digest}"'), ("Cache-Control", "private, no-cache")]
    if request.if_none_match.contains_weak(digest):
        return Response(status=304, headers=headers)
    return Response(document(), headers=headers, content_type="application/json")


def is_known(request: Request, *represented: bytes) -> bool:
    """Tell whether `answer` would be 304."""
    return request.if_none_match.contains_weak(_digest(represented))


def _digest(represented: tuple[bytes, ...]) -> str:
    return xxh3_128_hexdigest(b"\0".join((_RELEASE, *represented)))

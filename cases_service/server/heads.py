"""Finds the end of a request's head, and parses the head with gunicorn's strict parser without waiting for more."""

import re
from typing import Any, Final

from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

HEAD_BYTES: Final = 65536
"""A head that is longer is refused."""

REPEATED_IDENTITY: Final = "cases.repeated_identity"
"""The key in the WSGI environment that says that a visitor's JWT came in more than one header."""

# The parser refuses a bare line feed, so there is no need to wait for more after one.
_END: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_END_BYTES: Final = 4
_HIGHEST_VERSION: Final = (1, 1)
_HEALTH: Final = re.compile(r"/healthz/?")


def has_whole_head(received: bytearray, known: int) -> bool:
    """Tell whether this holds a complete head; its first `known` bytes were searched before."""
    return _END.search(received, max(known - _END_BYTES + 1, 0)) is not None


def parse_head(received: bytearray, *, cfg: Any, client: Any, number: int) -> tuple[Any, bytearray]:
    """Return the request with this head, and the bytes after it.

    Raises:
        gunicorn.http.errors.ParseException: It is malformed or exceeds a limit.

    """
    source = IterUnreader([bytes(received)])
    request = Request(cfg, source, client, number)
    # A response has the server's own highest version (RFC 9110, section 2.5); gunicorn would echo the request's.
    request.version = min(request.version, _HIGHEST_VERSION)
    if "close" in _connection_options(request):
        request.force_close()
    return request, bytearray(source.take_buffered())


def _connection_options(request: Any) -> set[str]:
    """Return the options of all Connection headers (RFC 9110, section 7.6.1); gunicorn reads only one header."""
    fields = [value for name, value in request.headers if name == "CONNECTION"]
    return {option.strip(" \t").lower() for field in fields for option in field.split(",")}


def has_repeated_identity(request: Any) -> bool:
    """Tell whether a visitor's JWT came in more than one header; the WSGI environment holds them joined by commas."""
    return [name for name, _ in request.headers].count("X-EXTERNAL-IDENTITY") > 1


def is_health(request: Any) -> bool:
    """Tell whether this is a liveness check."""
    return request.method in ("GET", "HEAD") and _HEALTH.fullmatch(request.path) is not None

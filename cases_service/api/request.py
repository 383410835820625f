"""The current request: HTTP's attributes, and those that the service adds."""

import re
import secrets
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from flask import Request
from flask.globals import request_ctx

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class CasesRequest(Request):
    """A request to the service.

    Attributes:
        started: When it arrived, by `perf_counter`.
        id: The caller's X-Request-ID if it is well-formed, else a new id.
        service_url: The base URL of links.
        code: The code of the problem that ended it, if any.

    """

    service_url: str = ""
    code: str | None = None

    def __init__(self, environ: "WSGIEnvironment", *args: Any, **kwargs: Any) -> None:
        super().__init__(environ, *args, **kwargs)
        self.started = perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        self.id: str = given if _ID.fullmatch(given) else secrets.token_hex(16)


def current_request() -> CasesRequest:
    """Return the request itself: each attribute access through Flask's proxy costs a microsecond."""
    request: CasesRequest = request_ctx.request  # type: ignore[assignment]
    return request

"""A response whose body is whole when it is made, as all of the service's are."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Response(flask.Response):
    """A response that is sent as it was made.

    Werkzeug's own copies the headers, and looks for what may be missing or redirect elsewhere. Here the length of the
    body is known from the start, and without a body there is no content type.
    """

    default_mimetype = None

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Send it; to a HEAD, the headers alone."""
        start_response(self.status, self.headers.to_wsgi_list())
        return () if environ["REQUEST_METHOD"] == "HEAD" else self.response  # type: ignore[return-value]

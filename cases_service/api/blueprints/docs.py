"""The API's documentation: the OpenAPI document, and a page to read it and try requests, without the Internet."""

from functools import lru_cache
from mimetypes import guess_type
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson
from flask import Blueprint, current_app, render_template, request
from werkzeug.routing import Map

from cases_service.api.etag import answer
from cases_service.api.openapi.components import DOCS_FILES
from cases_service.api.openapi.document import describe
from cases_service.api.request import current_request
from cases_service.api.response import Response
from cases_service.problems import NotFoundError
from cases_service.service import current_service

_PAGE: Final = Path(__file__).parent.parent / "docs_page"
# The page's own files and requests alone; data: for the icons in the style sheet.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

blueprint = Blueprint("docs", __name__, template_folder=str(_PAGE))


demo = Blueprint("demo", __name__)


@demo.get("/")
def root() -> Response:
    """Redirect the root of a demo to the page."""
    return Response(status=303, headers={"Location": f"{urlsplit(current_request().service_url).path}/docs"})


@blueprint.get("/openapi.json")
def document() -> Response:
    """Answer the OpenAPI document."""
    server = (current_service().settings.public_url or "").rstrip("/") or "/"
    body = _document(current_app.url_map, server, writes=current_service().writer is not None)
    return answer(request, lambda: body, body)


@blueprint.get("/docs")
def page() -> Response:
    """Answer the page; in a demo it has the credentials for a first request."""
    html = render_template(
        "page.html", root=urlsplit(current_request().service_url).path, credentials=current_service().demo_credentials
    )
    response = Response(html, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@blueprint.get("/docs/<name>")
def file(name: str) -> Response:
    """Answer a script or a style sheet of the page."""
    if name not in DOCS_FILES:
        raise NotFoundError
    body = _file(name)
    response = answer(request, lambda: body, body)
    if response.status_code == 200:  # noqa: PLR2004
        response.content_type = f"{guess_type(name)[0]}; charset=utf-8"
    return response


@lru_cache(maxsize=2)
def _document(routes: Map, server: str, *, writes: bool) -> bytes:
    return orjson.dumps(describe(routes, server, writes=writes))


@lru_cache(maxsize=len(DOCS_FILES))
def _file(name: str) -> bytes:
    own = _PAGE / name
    return (own if own.exists() else _PAGE / "swagger-ui" / name).read_bytes()

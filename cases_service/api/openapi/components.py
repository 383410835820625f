"""The shared components of the OpenAPI document: parameters, headers, security schemes, examples, and texts."""

import json
from pathlib import Path
from typing import Any, Final

from cases_service.api.authentication import IDENTITY_HEADER, IN_HEADER, MAXIMUM_IN_HEADER, MAXIMUM_IN_PATH

Json = dict[str, Any]

DOCS_FILES: Final = ("swagger-ui-bundle.js", "swagger-ui.css", "page.js", "page.css")
"""The files of the page at /docs."""

EXAMPLES: Final[Json] = json.loads((Path(__file__).parent / "examples.json").read_text(encoding="utf-8"))
"""The service's answers on the demo's data."""

DESCRIPTION: Final = f"""\
The support cases of your customers, for your own site or app: page by page, in one stable order, each case whole.

A request for a visitor's cases needs two things. **Your API token** says which organization is asking:
`Authorization: Bearer cst_…`, or `Token` instead of `Bearer`. **The visitor's JWT** says whose cases are requested:
your backend signs it with one of your organization's signing keys. Put it in the path or, better, in the header
`{IDENTITY_HEADER}` with `{IN_HEADER}` in its place in the path, because paths end up in logs. Keep both in your
backend.

The system that holds your organization's cases needs only an API token with the scope `cases:read` or `cases:write`:
the cases are below `/api/v5/orgs/{{organization_id}}/cases`. Every write can be repeated safely.

`HEAD` works wherever `GET` does, and a trailing slash is accepted. A query parameter that is wrong, empty, unknown or
repeated is an error; only a list may be repeated, or have commas between its values. Errors are problem documents
(RFC 9457): program against `code`. GETs may be repeated after 429, 503 and 504.

Requests that never reach the service are answered without a body, and not listed with the operations: 414 for a
request line of more than 8,190 bytes, 431 for header fields that are too long or too many, another 4xx or 501 for
malformed HTTP.

Within v5, attributes, codes and enumeration values may be added: ignore those you do not know.
"""

TAGS: Final = [
    {"name": "Cases", "description": "The cases of all contacts assigned to a visitor."},
    {"name": "Organization", "description": "The organization's own side: reads and writes all of its cases."},
    {"name": "Service", "description": "Routes for operators and tools; no credentials are needed."},
]

SECURITY_SCHEMES: Final[dict[str, Json]] = {
    "apiToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "cst_…",
        "description": "Your organization's API token, made by `cases-service create-token`.",
    },
    "apiTokenAsToken": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "The same API token after the word `Token`: `Token cst_…`.",
    },
    "visitorJwt": {
        "type": "apiKey",
        "in": "header",
        "name": IDENTITY_HEADER,
        "description": f"The visitor's JWT, of at most {MAXIMUM_IN_HEADER} characters, with `{IN_HEADER}` in the path.",
    },
}
# The JWT is in the header or in the path, which no security scheme can describe.
_SECURITY: Final[list[dict[str, list[str]]]] = [
    {"apiToken": [], "visitorJwt": []},
    {"apiTokenAsToken": [], "visitorJwt": []},
    {"apiToken": []},
    {"apiTokenAsToken": []},
]
SECURITY_OF: Final = {"Cases": _SECURITY, "Organization": _SECURITY[2:], "Service": []}

UUID: Final[Json] = {"type": "string", "format": "uuid"}
CASE: Final[Json] = EXAMPLES["case"]
ACTIVITY: Final[Json] = EXAMPLES["activity"]
MESSAGE: Final[Json] = EXAMPLES["message"]
EVENT: Final[Json] = EXAMPLES["event"]
OWN_MESSAGE: Final[Json] = EVENT["message"]
IMPORT_RUN: Final[Json] = {
    "id": "0d4cdca9-3c7b-4b0e-9a53-0f3a35b8a6a1",
    "finished_at": "2026-01-31T09:30:00.000Z",
    "source": "import",
    "api_token_id": "5b7c5a2e-8a54-4a0c-8c80-3a1f2d6c9e10",
    "is_stored": True,
    "lines": 100,
    "written": 97,
    "removed": 0,
    "stale": 2,
    "wrong": 1,
    "duration_ms": 84,
}
NEW_CASE: Final[Json] = {name: CASE[name] for name in ("case_number", "priority", "subject", "contact_id")}
PATH_PARAMETERS: Final[dict[str, Json]] = {
    "organization_id": {
        "name": "organization_id",
        "description": "Your organization's id.",
        "schema": UUID,
        "example": CASE["organization_id"],
    },
    "token": {
        "name": "external_id_jwt_token",
        "description": f"The visitor's JWT, or `{IN_HEADER}` if it is in the header `{IDENTITY_HEADER}`.",
        "schema": {
            "type": "string",
            "maxLength": MAXIMUM_IN_PATH,
            "pattern": rf"^({IN_HEADER}|[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)$",
        },
        "example": IN_HEADER,
    },
    "case_id": {"name": "case_id", "description": "The case's id.", "schema": UUID, "example": CASE["id"]},
    "name": {
        "name": "name",
        "description": "The file's name.",
        "schema": {"type": "string", "enum": list(DOCS_FILES)},
        "example": "page.js",
    },
}

_REQUEST_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
REQUEST_HEADERS: Final[dict[str, Json]] = {
    "RequestId": {
        "in": "header",
        "name": "X-Request-ID",
        "description": "An id of yours for the request: 1 to 64 letters, digits, `-` and `_`. Any other is replaced.",
        "schema": {"type": "string"},
    },
    "IfNoneMatch": {
        "in": "header",
        "name": "If-None-Match",
        "description": "The `ETag` of an earlier answer: 304 if the answer would be the same.",
        "schema": {"type": "string"},
    },
    "IfMatch": {
        "in": "header",
        "name": "If-Match",
        "description": "The `ETag` that you expect of the case, or `*` for any: 412 if the case has changed since.",
        "schema": {"type": "string"},
    },
    "IfNew": {
        "in": "header",
        "name": "If-None-Match",
        "description": "`*` only creates: 412 if a case with this id exists.",
        "schema": {"type": "string"},
    },
}


def _constant(description: str, *values: str) -> Json:
    return {"description": description, "required": True, "schema": {"type": "string", "enum": list(values)}}


def _seconds(description: str) -> Json:
    return {"description": description, "schema": {"type": "integer", "minimum": 0}}


ANSWER_HEADERS: Final[dict[str, Json]] = {
    "X-Request-ID": {
        "description": "The id of the request: yours, or a new one.",
        "required": True,
        "schema": _REQUEST_ID,
    },
    "Cache-Control": _constant(
        "Each answer is for one caller; one with an `ETag` may be cached and revalidated.",
        "private, no-store",
        "private, no-cache",
    ),
    "Vary": _constant("The headers that the answer depends on.", f"Authorization, {IDENTITY_HEADER}"),
    "Referrer-Policy": _constant("No address is passed on.", "no-referrer"),
    "X-Content-Type-Options": _constant("Clients must not guess the content type.", "nosniff"),
    "ETag": {
        "description": "Weak: covers the content, but not the links.",
        "required": True,
        "schema": {"type": "string", "pattern": '^W/"[0-9a-f]{40}"$'},
    },
    "StrongETag": {
        "description": "Strong: differs after every change of the case.",
        "required": True,
        "schema": {"type": "string", "pattern": r'^"[0-9a-f]{32}(\.[0-9a-f]{8})?"$'},
    },
    "Location": {
        "description": "The URL of the new case.",
        "required": True,
        "schema": {"type": "string", "format": "uri"},
    },
    "Retry-After": {**_seconds("Seconds to wait before the next try."), "required": True},
    "WWW-Authenticate": {
        "description": "The schemes accepted for the API token.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Allow": {
        "description": "The methods that the path takes.",
        "required": True,
        "schema": {"type": "string"},
    },
    "RateLimit-Limit": _seconds("Requests that the tightest limit allows; present if a limit is configured."),
    "RateLimit-Remaining": _seconds("Requests remaining of it."),
    "RateLimit-Reset": _seconds("Seconds until it is full again."),
}
EVERYWHERE: Final = ("X-Request-ID", "Cache-Control", "Vary", "Referrer-Policy", "X-Content-Type-Options")
RATE_LIMIT: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
OF_STATUS: Final = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
STATUS_WORDS: Final = {
    400: "The request is wrong.",
    401: "The API token is missing or not valid.",
    403: "The API token gives no access to this organization, or does not allow this request.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    409: "The request conflicts with an existing object.",
    410: "It is no longer kept.",
    412: "The case does not match the conditions.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many requests.",
    500: "The service failed.",
    503: "The service cannot answer now.",
    504: "The database took too long.",
}

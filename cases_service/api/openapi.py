"""Describes the interface as an OpenAPI 3.1 document, made from the routes, the schemas and the errors."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema, fields
from werkzeug.routing import Map, Rule

from cases_service import __version__, errors
from cases_service.api import parameters
from cases_service.api.authentication import IDENTITY_HEADER, IN_HEADER, MAXIMUM_IN_HEADER, MAXIMUM_IN_PATH
from cases_service.api.organization_parameters import Identifiers, OrganizationCollectionParameters
from cases_service.cases import schemas
from cases_service.cases.bodies import CHANGE, WHOLE, Identifier, Kind, Reference
from cases_service.cases.conversation_bodies import CASE_STATE, NEW_MESSAGE, NEW_ORGANIZATION_MESSAGE, READ_MARK
from cases_service.cases.organization_filters import NONE
from cases_service.errors import ProblemError
from cases_service.loading.imports import MAXIMUM_LINES
from cases_service.loading.load import IMPORTED_TYPES, MAXIMUM_ERRORS

Json = dict[str, Any]

DOCS_FILES: Final = ("swagger-ui-bundle.js", "swagger-ui.css", "page.js", "page.css")
"""What the page at /docs is made of."""

_EXAMPLES: Final[Json] = json.loads((Path(__file__).parent / "openapi_examples.json").read_text(encoding="utf-8"))
"""What the service answers on the demo's data."""

_DESCRIPTION: Final = f"""\
The support cases of your customers, for your own site or app: page by page, in one stable order, each case whole.

Two things open the cases of a visitor. **Your API token** says which organization asks: `Authorization: Bearer cst_…`,
or `Token` instead of `Bearer`. **The visitor's JWT** says whose cases are asked for: your backend signs it with one of
your organization's signing keys. It stands in the path or, better, in the header `{IDENTITY_HEADER}` with
`{IN_HEADER}` in its place in the path, since paths end up in logs. Keep both in your backend.

The system that holds your organization's cases needs the API token alone, one with the scope `cases:read` or
`cases:write`: it finds them below `/api/v5/orgs/{{organization_id}}/cases`. Every write can be repeated safely.

`HEAD` works wherever `GET` does, and a trailing slash is accepted. A query parameter that is wrong, empty, unknown or
repeated is an error; only a list may be repeated, or come once with commas between its values. Errors are problem
documents (RFC 9457): program against `code`. GETs may be repeated after 429, 503 and 504.

What never reaches the service is answered without a body, and not listed with the operations: 414 for a request line
of more than 8,190 bytes, 431 for header fields that are too long or too many, another 4xx or 501 for what is no HTTP.

Within v5 attributes, codes and enumeration values may be added: ignore what you do not know.
"""

_TAGS: Final = [
    {"name": "Cases", "description": "The cases of all contacts that are assigned to a visitor."},
    {"name": "Organization", "description": "The organization's own side: all of its cases, read and written."},
    {"name": "Service", "description": "What operators and tools ask; no credentials are needed."},
]

_SECURITY_SCHEMES: Final[dict[str, Json]] = {
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
# The JWT stands in the header or in the path, where no security scheme can.
_SECURITY: Final[list[dict[str, list[str]]]] = [
    {"apiToken": [], "visitorJwt": []},
    {"apiTokenAsToken": [], "visitorJwt": []},
    {"apiToken": []},
    {"apiTokenAsToken": []},
]
_SECURITY_OF: Final = {"Cases": _SECURITY, "Organization": _SECURITY[2:], "Service": []}

_UUID: Final[Json] = {"type": "string", "format": "uuid"}
_CASE: Final[Json] = _EXAMPLES["case"]
_ACTIVITY: Final[Json] = _EXAMPLES["activity"]
_MESSAGE: Final[Json] = _EXAMPLES["message"]
_EVENT: Final[Json] = _EXAMPLES["event"]
_OWN_MESSAGE: Final[Json] = _EVENT["message"]
_IMPORT_RUN: Final[Json] = {
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
_NEW_CASE: Final[Json] = {name: _CASE[name] for name in ("case_number", "priority", "subject", "contact_id")}
_PATH_PARAMETERS: Final[dict[str, Json]] = {
    "organization_id": {
        "name": "organization_id",
        "description": "Your organization's id.",
        "schema": _UUID,
        "example": _CASE["organization_id"],
    },
    "token": {
        "name": "external_id_jwt_token",
        "description": f"The visitor's JWT, or `{IN_HEADER}` where it is in the header `{IDENTITY_HEADER}`.",
        "schema": {
            "type": "string",
            "maxLength": MAXIMUM_IN_PATH,
            "pattern": rf"^({IN_HEADER}|[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)$",
        },
        "example": IN_HEADER,
    },
    "case_id": {"name": "case_id", "description": "The case's id.", "schema": _UUID, "example": _CASE["id"]},
    "name": {
        "name": "name",
        "description": "The file's name.",
        "schema": {"type": "string", "enum": list(DOCS_FILES)},
        "example": "page.js",
    },
}

_REQUEST_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_REQUEST_HEADERS: Final[dict[str, Json]] = {
    "RequestId": {
        "in": "header",
        "name": "X-Request-ID",
        "description": "An id of yours for the request: 1 to 64 letters, digits, `-` and `_`. Any other is replaced.",
        "schema": {"type": "string"},
    },
    "IfNoneMatch": {
        "in": "header",
        "name": "If-None-Match",
        "description": "The `ETag` of an earlier answer: 304 where it would be the same again.",
        "schema": {"type": "string"},
    },
    "IfMatch": {
        "in": "header",
        "name": "If-Match",
        "description": "The `ETag` that the case is expected to have, or `*` for any: 412 where it has changed since.",
        "schema": {"type": "string"},
    },
    "IfNew": {
        "in": "header",
        "name": "If-None-Match",
        "description": "`*` only creates: 412 where a case with this id is there.",
        "schema": {"type": "string"},
    },
}


def _constant(description: str, *values: str) -> Json:
    return {"description": description, "required": True, "schema": {"type": "string", "enum": list(values)}}


def _seconds(description: str) -> Json:
    return {"description": description, "schema": {"type": "integer", "minimum": 0}}


_ANSWER_HEADERS: Final[dict[str, Json]] = {
    "X-Request-ID": {
        "description": "The id of the request: yours, or a new one.",
        "required": True,
        "schema": _REQUEST_ID,
    },
    "Cache-Control": _constant(
        "Each answer is for one caller; one with an `ETag` may be kept and asked for again.",
        "private, no-store",
        "private, no-cache",
    ),
    "Vary": _constant("What the answer depends on.", f"Authorization, {IDENTITY_HEADER}"),
    "Referrer-Policy": _constant("No address is passed on.", "no-referrer"),
    "X-Content-Type-Options": _constant("The content type is what it says.", "nosniff"),
    "ETag": {
        "description": "Stands for what is shown, weakly: not for the links.",
        "required": True,
        "schema": {"type": "string", "pattern": '^W/"[0-9a-f]{40}"$'},
    },
    "StrongETag": {
        "description": "Stands for the case, strongly: another one after every change.",
        "required": True,
        "schema": {"type": "string", "pattern": r'^"[0-9a-f]{32}(\.[0-9a-f]{8})?"$'},
    },
    "Location": {
        "description": "Where the new case is.",
        "required": True,
        "schema": {"type": "string", "format": "uri"},
    },
    "Retry-After": {**_seconds("Seconds to wait before the next try."), "required": True},
    "WWW-Authenticate": {
        "description": "The schemes that the API token may have.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Allow": {
        "description": "The methods that the path takes.",
        "required": True,
        "schema": {"type": "string"},
    },
    "RateLimit-Limit": _seconds("Requests that the tightest limit allows; there where a limit is configured."),
    "RateLimit-Remaining": _seconds("Requests that are left of it."),
    "RateLimit-Reset": _seconds("Seconds until it is whole again."),
}
_EVERYWHERE: Final = ("X-Request-ID", "Cache-Control", "Vary", "Referrer-Policy", "X-Content-Type-Options")
_RATE_LIMIT: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
_OF_STATUS: Final = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_STATUS_WORDS: Final = {
    400: "The request is wrong.",
    401: "The API token is missing or not valid.",
    403: "The API token does not open this organization, or does not let this pass.",
    404: "There is no such thing.",
    405: "The path does not take this method.",
    409: "Something that is there stands in the way.",
    410: "It is no longer kept.",
    412: "The case is not as expected.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "Too many requests.",
    500: "The service failed.",
    503: "The service cannot answer now.",
    504: "The database took too long.",
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is known of a route beside its path: its words, what it takes, and what it answers.

    `etag` is the header that describes its ETag, where it has one; `answers` are the statuses of its success, each with
    what is described of its headers; `body` is the schema of what it takes, and what types that may have.
    """

    summary: str
    description: str
    tag: str
    method: str = "get"
    media_type: str = "application/json"
    schema: type[Schema] | Json | None
    with_fields: str | None = None
    """The schema of an answer to a request that names `fields`."""
    example: Any = None
    parameters: type[Schema] | None = None
    etag: str | None = None
    takes: tuple[str, ...] = ()
    answers: tuple[int, ...] = (200,)
    body: str | None = None
    body_types: tuple[str, ...] = ("application/json",)
    body_example: Any = None
    problems: tuple[type[ProblemError], ...]

    @property
    def makes_a_case(self) -> bool:
        """Whether it answers where the case is that it has made."""
        return self.method == "post" and self.body == "NewCase"

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method != "get"


_HEALTH_PROBLEMS: Final = (errors.MethodNotAllowedError, errors.InternalError)
# Not found where the operators have an address of their own, and this is not it.
_OPERATION_PROBLEMS: Final = (*_HEALTH_PROBLEMS, errors.NotFoundError)
_DOCS_PROBLEMS: Final = (errors.HostNotAllowedError, errors.NotFoundError, *_HEALTH_PROBLEMS)
_STATUS: Final[Json] = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}


_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_BY_TYPE: Final[Json] = {
    "type": "object",
    "properties": dict.fromkeys(IMPORTED_TYPES, _COUNT),
    "required": list(IMPORTED_TYPES),
}
_LINE_ERROR: Final[Json] = {
    "type": "object",
    "properties": {
        "line": {"type": "integer", "minimum": 1},
        "field": {"type": ["string", "null"]},
        "detail": {"type": "string"},
    },
    "required": ["line", "field", "detail"],
}
_IMPORT: Final[Json] = {
    "type": "object",
    "properties": {
        "lines": {**_COUNT, "description": "Lines that are not blank. Each of them is counted once below."},
        "written": {**_BY_TYPE, "description": "Rows that were added or changed."},
        "removed": {**_BY_TYPE, "description": "Rows that were removed."},
        "unchanged": {**_COUNT, "description": "Lines that changed nothing, or that a later line of the row replaced."},
        "stale": {**_COUNT, "description": "Lines that were not newer than their row."},
        "error_count": {**_COUNT, "description": "Lines that are wrong."},
        "errors": {"type": "array", "maxItems": MAXIMUM_ERRORS, "items": _LINE_ERROR},
    },
    "required": ["lines", "written", "removed", "unchanged", "stale", "error_count", "errors"],
}

_OF_BODIES: Final = (errors.UnsupportedMediaTypeError, errors.BodyTooLargeError, errors.InvalidBodyError)
_OF_WRITES: Final = (errors.ReadOnlyDeploymentError, errors.PreconditionFailedError, errors.CaseNumberTakenError)
_OF_CONVERSATIONS: Final = (errors.IdTakenError, errors.CaseClosedError, errors.EventsGoneError)
_OF_VISITORS: Final = (
    *errors.VisitorTokenError.__subclasses__(),
    errors.VisitorNotFoundError,
    errors.InvalidCursorError,
)


def _all_but(*others: type[ProblemError]) -> tuple[type[ProblemError], ...]:
    return tuple(kind for kind in errors.kinds() if kind not in others)


def _of_visitors(*others: type[ProblemError]) -> tuple[type[ProblemError], ...]:
    return _all_but(*_OF_BODIES, *_OF_WRITES, *_OF_CONVERSATIONS, errors.InvalidLinesError, *others)


def _of_organization(*others: type[ProblemError]) -> tuple[type[ProblemError], ...]:
    return _all_but(*_OF_VISITORS, *_OF_CONVERSATIONS, errors.InvalidLinesError, *others)


_OF_VISITORS_WRITES: Final = (
    *_of_visitors(errors.InvalidCursorError),
    *_OF_BODIES,
    errors.ReadOnlyDeploymentError,
)
_OF_OWN_WRITES: Final = _of_organization(errors.PreconditionFailedError, errors.CaseNumberTakenError)
_OF_OWN_PAGES: Final = (*_of_organization(*_OF_BODIES, *_OF_WRITES), errors.InvalidCursorError)


OPERATIONS: Final[dict[str, Operation]] = {
    "cases.list_cases": Operation(
        summary="List a visitor's cases",
        description="A page of the cases of all contacts that are assigned to the visitor. To walk on, follow `next`"
        " as it is: each case is shown exactly once, whatever else changes meanwhile.",
        tag="Cases",
        parameters=parameters.CollectionParameters,
        schema=schemas.PageSchema,
        with_fields="PageOfPartialCases",
        example={"next": _EXAMPLES["next"], "previous": None, "results": [_CASE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.CaseNotFoundError),
    ),
    "cases.summarize_cases": Operation(
        summary="Count a visitor's cases",
        description="The cases that the filters let pass, in a few numbers, for a badge.",
        tag="Cases",
        parameters=parameters.FilterParameters,
        schema=schemas.SummarySchema,
        example=_EXAMPLES["summary"],
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.CaseNotFoundError, errors.InvalidCursorError),
    ),
    "cases.get_case": Operation(
        summary="Show one case",
        description="One case of a contact that is assigned to the visitor.",
        tag="Cases",
        parameters=parameters.DetailParameters,
        schema=schemas.CaseSchema,
        with_fields="PartialCase",
        example=_CASE,
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.InvalidCursorError),
    ),
    "organization_cases.list_cases": Operation(
        summary="List an organization's cases",
        description="A page of all cases of the organization, with or without a contact, as they are now. To walk on,"
        " follow `next` as it is. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=OrganizationCollectionParameters,
        schema=schemas.OrganizationPageSchema,
        with_fields="PageOfPartialOrganizationCases",
        example={"next": None, "previous": None, "results": [_CASE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=(
            *_of_organization(*_OF_BODIES, *_OF_WRITES, errors.CaseNotFoundError),
            errors.InvalidCursorError,
        ),
    ),
    "organization_cases.get_case": Operation(
        summary="Show one case to its organization",
        description="One case of the organization, with or without a contact, as it is now: what was answered 201 is"
        " there in the next request. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.DetailParameters,
        schema=schemas.OrganizationCaseSchema,
        with_fields="PartialOrganizationCase",
        example=_CASE,
        etag="StrongETag",
        takes=("IfNoneMatch",),
        problems=_of_organization(*_OF_BODIES, *_OF_WRITES),
    ),
    "organization_cases.create_case": Operation(
        summary="Make a case",
        description="A new case under a new id. Repeated after an answer that was lost, it finds its `case_number`"
        " taken, and `case_id` names the case that it made. Needs the scope `cases:write`.",
        tag="Organization",
        method="post",
        parameters=parameters.Parameters,
        body="NewCase",
        body_example=_NEW_CASE,
        schema=schemas.OrganizationCaseSchema,
        example=_CASE,
        etag="StrongETag",
        answers=(201,),
        problems=_of_organization(errors.CaseNotFoundError, errors.PreconditionFailedError),
    ),
    "organization_cases.put_case": Operation(
        summary="Make or replace a case",
        description="A case under an id of yours. Where it is there already, what the body leaves out becomes null or"
        " its default. Repeating it is harmless. Needs the scope `cases:write`.",
        tag="Organization",
        method="put",
        parameters=parameters.Parameters,
        body="NewCase",
        body_example=_NEW_CASE,
        schema=schemas.OrganizationCaseSchema,
        example=_CASE,
        etag="StrongETag",
        takes=("IfMatch", "IfNew"),
        answers=(200, 201),
        problems=_of_organization(),
    ),
    "organization_cases.change_case": Operation(
        summary="Change a case",
        description="What the body names is changed, everything else stays (RFC 7396). Needs the scope `cases:write`.",
        tag="Organization",
        method="patch",
        parameters=parameters.Parameters,
        body="CaseChange",
        body_types=("application/merge-patch+json", "application/json"),
        body_example={"is_closed": True},
        schema=schemas.OrganizationCaseSchema,
        example=_CASE,
        etag="StrongETag",
        takes=("IfMatch",),
        problems=_of_organization(),
    ),
    "organization_cases.delete_case": Operation(
        summary="Remove a case",
        description="The case is gone. Repeated, it is not found. Needs the scope `cases:write`.",
        tag="Organization",
        method="delete",
        parameters=parameters.Parameters,
        schema=None,
        takes=("IfMatch",),
        answers=(204,),
        problems=_of_organization(*_OF_BODIES, errors.CaseNumberTakenError),
    ),
    "conversations.list_activities": Operation(
        summary="List the activities of a case",
        description="A page of the conversations in a case, each on one channel.",
        tag="Cases",
        parameters=parameters.ConversationParameters,
        schema=schemas.ActivityPageSchema,
        example={"next": None, "previous": None, "results": [_ACTIVITY]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(),
    ),
    "conversations.list_messages": Operation(
        summary="List the messages of a case",
        description="A page of what was said in a case, to follow as a page of cases is.",
        tag="Cases",
        parameters=parameters.ConversationParameters,
        schema=schemas.MessagePageSchema,
        example={"next": None, "previous": None, "results": [_MESSAGE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(),
    ),
    "conversations.create_message": Operation(
        summary="Say something in a case",
        description="201 with the message; sent again under the same `id`, 200 with the one that is there. A case that"
        " is pending or closed opens again. Needs the scope `visitors:write`.",
        tag="Cases",
        method="post",
        parameters=parameters.Parameters,
        body="NewMessage",
        body_example={"id": _MESSAGE["id"], "text": _MESSAGE["text"]},
        schema=schemas.MessageSchema,
        example=_MESSAGE,
        answers=(200, 201),
        problems=(*_OF_VISITORS_WRITES, errors.IdTakenError, errors.CaseClosedError),
    ),
    "conversations.mark_read": Operation(
        summary="Mark messages as read",
        description="What users wrote up to a message, or all of it, has been read. Repeating it is harmless. Needs the"
        " scope `visitors:write`.",
        tag="Cases",
        method="put",
        parameters=parameters.Parameters,
        body="ReadMark",
        body_example={"until": _MESSAGE["id"]},
        schema=schemas.CaseSchema,
        example=_CASE,
        problems=_OF_VISITORS_WRITES,
    ),
    "conversations.change_case": Operation(
        summary="Close or reopen a case",
        description="Repeating it is harmless. Needs the scope `visitors:write`.",
        tag="Cases",
        method="patch",
        parameters=parameters.Parameters,
        body="CaseState",
        body_types=("application/merge-patch+json", "application/json"),
        body_example={"is_closed": True},
        schema=schemas.CaseSchema,
        example=_CASE,
        problems=(*_OF_VISITORS_WRITES, errors.CaseClosedError),
    ),
    "organization_conversations.list_activities": Operation(
        summary="List the activities of a case to its organization",
        description="As the primary has them now, with notes counted. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.ConversationParameters,
        schema=schemas.ActivityPageSchema,
        example={"next": None, "previous": None, "results": [_ACTIVITY]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_OF_OWN_PAGES,
    ),
    "organization_conversations.list_messages": Operation(
        summary="List the messages of a case to its organization",
        description="As the primary has them now, with notes among users. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.ConversationParameters,
        schema=schemas.OrganizationMessagePageSchema,
        example={"next": None, "previous": None, "results": [_OWN_MESSAGE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_OF_OWN_PAGES,
    ),
    "organization_conversations.create_message": Operation(
        summary="Answer in a case, or leave a note",
        description="201 with the message; sent again under the same `id`, 200 with the one that is there. What is not"
        " private is shown to the visitor. Needs the scope `cases:write`.",
        tag="Organization",
        method="post",
        parameters=parameters.Parameters,
        body="NewOrganizationMessage",
        body_example={"text": "It has been repaired today.", "is_private": False},
        schema=schemas.OrganizationMessageSchema,
        example=_OWN_MESSAGE,
        answers=(200, 201),
        problems=(*_OF_OWN_WRITES, errors.IdTakenError),
    ),
    "organization_conversations.mark_read": Operation(
        summary="Mark a visitor's messages as read",
        description="What the visitor wrote up to a message, or all of it, has been read. Repeating it is harmless."
        " Needs the scope `cases:write`.",
        tag="Organization",
        method="put",
        parameters=parameters.Parameters,
        body="ReadMark",
        body_example={},
        schema=schemas.OrganizationCaseSchema,
        example=_CASE,
        etag="StrongETag",
        problems=_OF_OWN_WRITES,
    ),
    "organization_conversations.list_events": Operation(
        summary="List what visitors did",
        description="Every message, close, reopening and read mark of a visitor, in the order of the commits. Who goes"
        " on from `last` misses nothing and sees nothing twice. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.EventParameters,
        schema=schemas.EventPageSchema,
        example={"results": [_EVENT], "last": 1, "has_more": False},
        problems=(
            *_of_organization(*_OF_BODIES, *_OF_WRITES, errors.CaseNotFoundError),
            errors.EventsGoneError,
        ),
    ),
    "imports.import_rows": Operation(
        summary="Import rows",
        description="Users, visitors, contacts, stages, cases, activities and messages of the organization, a line each"
        " in the load format,"
        f" which docs/load.md describes; `organization_id` may be left out. At most {MAXIMUM_LINES:,} lines, and 16 MiB"
        " unpacked; `Content-Encoding: gzip` is accepted. An `id`, and each reference to one, may be any text of yours"
        " of 1 to 128 characters. Repeating an import is harmless. Needs the scope `cases:write`.",
        tag="Organization",
        method="post",
        parameters=parameters.ImportParameters,
        body="Lines",
        body_types=("application/x-ndjson",),
        body_example='{"type": "user", "id": "35436", "first_name": "Ada"}\n',
        schema=_IMPORT,
        example={
            "lines": 1,
            "written": dict.fromkeys(IMPORTED_TYPES, 0) | {"user": 1},
            "removed": dict.fromkeys(IMPORTED_TYPES, 0),
            "unchanged": 0,
            "stale": 0,
            "error_count": 0,
            "errors": [],
        },
        problems=_all_but(
            *_OF_VISITORS,
            *_OF_CONVERSATIONS,
            errors.CaseNotFoundError,
            errors.PreconditionFailedError,
            errors.CaseNumberTakenError,
        ),
    ),
    "import_runs.list_import_runs": Operation(
        summary="List the latest loads and imports",
        description="What the latest loads and imports of the organization came to, the newest first; a thousand are"
        " kept. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.ImportRunParameters,
        schema=schemas.ImportRunsSchema,
        example={"results": [_IMPORT_RUN]},
        problems=_of_organization(*_OF_BODIES, *_OF_WRITES, errors.CaseNotFoundError),
    ),
    "health.healthz": Operation(
        summary="Whether the process lives",
        description="Answers 200 for as long as the process answers at all, to any host.",
        tag="Service",
        schema=_STATUS,
        example={"status": "ok"},
        problems=_HEALTH_PROBLEMS,
    ),
    "health.readyz": Operation(
        summary="Whether the service can answer",
        description="Answers 200 where the database answers and has the schema that this release needs, to any host."
        " The answer is kept for a second.",
        tag="Service",
        schema=_STATUS,
        example={"status": "ok"},
        problems=(*_OPERATION_PROBLEMS, errors.UnavailableError),
    ),
    "health.show_metrics": Operation(
        summary="What has been counted",
        description="The metrics of all workers, as Prometheus reads them, to any host.",
        tag="Service",
        media_type="text/plain",
        schema={"type": "string"},
        problems=_OPERATION_PROBLEMS,
    ),
    "docs.document": Operation(
        summary="This document",
        description="The interface as an OpenAPI 3.1 document. It is not there with `CASES_DOCS=off`.",
        tag="Service",
        schema={"type": "object", "properties": {"openapi": {"const": "3.1.0"}}, "required": ["openapi"]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_DOCS_PROBLEMS,
    ),
    "docs.page": Operation(
        summary="This document as a page",
        description="A page to read the document on, and to try the interface. Not there with `CASES_DOCS=off`.",
        tag="Service",
        media_type="text/html; charset=utf-8",
        schema={"type": "string"},
        problems=_DOCS_PROBLEMS,
    ),
    "docs.file": Operation(
        summary="A file of the page",
        description="The scripts and styles of the page. Not there with `CASES_DOCS=off`.",
        tag="Service",
        media_type="text/*",
        schema={"type": "string"},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_DOCS_PROBLEMS,
    ),
}


def describe(routes: Map, server: str, *, writes: bool) -> Json:
    """Return the document of these routes, of a service that answers under a URL, and writes or only reads."""
    marshmallow = MarshmallowPlugin(schema_name_resolver=_schema_name)
    spec = APISpec(
        "Visitor cases",
        __version__,
        "3.1.0",
        info={
            "summary": "The support cases of your signed-in customers",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        servers=[{"url": server, "description": "This service."}],
        tags=_TAGS,
        plugins=[marshmallow],
    )
    # The document has just made it.
    converter = cast("OpenAPIConverter", marshmallow.converter)
    converter.add_attribute_function(_property_of)  # type: ignore[no-untyped-call]
    converter.add_parameter_attribute_function(_style_of)
    _add_components(spec)
    for rule in routes.iter_rules():
        operation = OPERATIONS.get(rule.endpoint)
        if operation is not None and (writes or not operation.writes):
            spec.path(path=_path(rule), operations={operation.method: _operation(rule, operation)})
    document: Json = spec.to_dict()
    for path in document["paths"].values():
        if "get" in path:
            path["head"] = _without_bodies(path["get"])
    described = document["components"]["schemas"]
    for name, schema in described.items():
        _say_what_is_there(name, schema)
    described |= _narrowed_by_fields(described)
    if writes:
        described["NewCase"] = _body_schema("A new case.", WHOLE, described["OrganizationCase"])
        described["Lines"] = {"type": "string", "description": "Lines of the load format, an object each (NDJSON)."}
        described["CaseChange"] = _body_schema(
            "What is to be changed of a case.", CHANGE, described["OrganizationCase"]
        )
        described |= {name: _members(schema) for name, schema in _BODIES.items()}
    return document


def _add_components(spec: APISpec) -> None:
    for name, header in _ANSWER_HEADERS.items():
        spec.components.header(name, header)
    for name, parameter in _REQUEST_HEADERS.items():
        spec.components.parameter(name, "header", parameter)
    for name, scheme in _SECURITY_SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    for kind in errors.kinds():
        spec.components.example(kind.code, {"summary": _title(kind), "value": _example_of(kind)})
    spec.components.schema("Problem", schema=schemas.ProblemSchema)


def _schema_name(schema: type[Schema] | Schema) -> str:
    return (schema if isinstance(schema, type) else type(schema)).__name__.removesuffix("Schema")


def _path(rule: Rule) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda match: "{" + _PATH_PARAMETERS[match[1]]["name"] + "}", rule.rule)


def _operation(rule: Rule, operation: Operation) -> Json:
    is_api = operation.tag != "Service"
    in_path = re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)
    taken: list[Any] = [{"in": "path", "required": True, **_PATH_PARAMETERS[name]} for name in in_path]
    if operation.parameters is not None:
        taken.append({"in": "query", "schema": operation.parameters})
    taken += ["RequestId", *operation.takes]
    return {
        "operationId": _operation_id(rule.endpoint),
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": taken,
        **({} if operation.body is None else {"requestBody": _request_body(operation)}),
        "security": _SECURITY_OF[operation.tag],
        "responses": _responses(operation, _RATE_LIMIT if is_api else ()),
    }


def _without_bodies(operation: Json) -> Json:
    """Return what HEAD does, given what GET does."""
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    return operation | {
        "operationId": f"head_{operation['operationId']}",
        "summary": f"{operation['summary']}: the headers alone",
        "description": "What `GET` answers, without the body.",
        "responses": responses,
    }


def _operation_id(endpoint: str) -> str:
    blueprint, _, name = endpoint.rpartition(".")
    if blueprint == "organization_conversations":
        return name.replace("_", "_organization_", 1)
    return name.replace("case", "organization_case") if blueprint == "organization_cases" else name


def _request_body(operation: Operation) -> Json:
    schema = {"$ref": f"#/components/schemas/{operation.body}"}
    content = {"schema": schema, "example": operation.body_example}
    return {"required": True, "content": dict.fromkeys(operation.body_types, content)}


def _body_schema(description: str, kind: Kind, case: Json) -> Json:
    """Return what a body takes: of each attribute that it may write what an answer shows, and of others anything."""
    properties = {
        name: _reference(name) if isinstance(kind.schema.fields.get(name), Reference) else schema
        for name, schema in case["properties"].items()
    }
    ignored = {name: {"description": "Not looked at."} for name in properties if name in kind.read_only}
    required = [name for name, field in kind.schema.fields.items() if field.required]
    return {
        "type": "object",
        "description": description,
        "properties": {**properties, **ignored},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


_BODIES: Final[dict[str, Schema]] = {
    "NewMessage": NEW_MESSAGE,
    "NewOrganizationMessage": NEW_ORGANIZATION_MESSAGE,
    "ReadMark": READ_MARK,
    "CaseState": CASE_STATE,
}


def _members(schema: Schema) -> Json:
    """Return what a body takes that is no case."""
    required = [name for name, field in schema.fields.items() if field.required]
    return {
        "type": "object",
        "description": (type(schema).__doc__ or "").strip(),
        "properties": {name: {**_kind_of(field), **field.metadata} for name, field in schema.fields.items()},
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _kind_of(field: fields.Field[Any]) -> Json:
    if isinstance(field, Identifier):
        return _UUID
    is_text = "enum" in field.metadata or "maxLength" in field.metadata
    return {"type": "string" if is_text else "boolean"}


def _reference(name: str) -> Json:
    by_id = {"type": "object", "properties": {"id": _UUID}, "required": ["id"]}
    return {"description": f"Stands for its id, like {name}_id.", "anyOf": [by_id, {"type": "null"}]}


def _responses(operation: Operation, more_headers: tuple[str, ...]) -> dict[int, Json]:
    headers = _named((*_EVERYWHERE, *more_headers))
    if operation.etag is not None:
        headers["ETag"] = {"$ref": f"#/components/headers/{operation.etag}"}
    responses: dict[int, Json] = {
        status: {
            "description": operation.summary + ".",
            "headers": headers | (_named(["Location"]) if operation.makes_a_case else {}),
            **_content(operation),
        }
        for status in operation.answers
    }
    if "IfNoneMatch" in operation.takes:
        responses[304] = {"description": "What `If-None-Match` names is what is there.", "headers": headers}
    by_status: dict[int, list[type[ProblemError]]] = defaultdict(list)
    for kind in operation.problems:
        by_status[kind.status].append(kind)
    for status, kinds in sorted(by_status.items()):
        responses[status] = _problem(status, kinds, more_headers)
    return responses


def _content(operation: Operation) -> Json:
    if operation.schema is None:
        return {}
    content: Json = {"schema": operation.schema}
    if operation.example is not None:
        content["example"] = operation.example
    if operation.with_fields is not None:
        content["x-with-fields"] = {"$ref": f"#/components/schemas/{operation.with_fields}"}
    return {"content": {operation.media_type: content}}


def _problem(status: int, kinds: list[type[ProblemError]], more_headers: tuple[str, ...]) -> Json:
    codes = [kind.code for kind in kinds]
    narrower = {
        "type": "object",
        "properties": {"status": {"type": "integer", "enum": [status]}, "code": {"type": "string", "enum": codes}},
    }
    lines = "\n".join(f"- `{kind.code}`: {_title(kind)}." for kind in kinds)
    return {
        "description": f"{_STATUS_WORDS[status]}\n\n{lines}",
        "headers": _named((*_EVERYWHERE, *more_headers, *_OF_STATUS.get(status, ()))),
        "content": {
            "application/problem+json": {
                "schema": {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrower]},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def _named(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


_DETAILS: Final[dict[type[ProblemError], str]] = {
    errors.TokenClaimMissingError: "The claim exp is required.",
    errors.TokenClaimInvalidError: "The claim iss is not the issuer that this service expects.",
}


_WRONG_MEMBER: Final = {"pointer": "/priority", "detail": "Expected a whole number from 1 to 5."}

_WRONG_LINE: Final = {"line": 7, "field": "priority", "detail": "expected an integer from 1 to 5"}


def _example_of(kind: type[ProblemError]) -> Json:
    wrong = {"parameter": "page_size", "detail": "Expected a whole number from 1 to 100."}
    return schemas.ProblemSchema().dump(  # type: ignore[no-any-return]
        {
            "code": kind.code,
            "title": _title(kind),
            "status": kind.status,
            "detail": kind.default_detail or _DETAILS[kind],
            "request_id": "4f0c6a1b2d3e4f5061728394a5b6c7d8",
            **({"errors": [wrong]} if kind is errors.InvalidParameterError else {}),
            **({"errors": [_WRONG_MEMBER]} if kind is errors.InvalidBodyError else {}),
            **({"errors": [_WRONG_LINE], "error_count": 1} if kind is errors.InvalidLinesError else {}),
            **({"case_id": _CASE["id"]} if kind is errors.CaseNumberTakenError else {}),
            **({"position": 4711} if kind is errors.EventsGoneError else {}),
        }
    )


def _title(kind: type[ProblemError]) -> str:
    return (kind.__doc__ or "").strip().rstrip(".")


def _property_of(_converter: OpenAPIConverter, field: fields.Field[Any], *, ret: Json) -> Json:
    """Return what apispec cannot know: the form of the parameters' own fields, and that null is not a text in a URL."""
    if field.load_default is None:
        ret.pop("default")
        ret["type"] = "string"
    match field:
        case parameters.CommaSeparated():
            return {"type": "array", "minItems": 1, "items": _items(field)}
        case parameters.Flag():
            return {"type": "boolean"}
        case parameters.Moment():
            return {"type": "string", "format": "date-time", "examples": [_CASE["updated_at"]]}
        case parameters.WholeNumber():
            return {"minimum": field.limits.start, "maximum": field.limits.stop - 1}
        case schemas.Instant():
            return {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
    return {}


def _items(field: parameters.CommaSeparated) -> Json:
    if isinstance(field, Identifiers):
        return {"anyOf": [_UUID, {"const": NONE}]}
    choices = list(field.choices.values())
    return {"type": "integer" if isinstance(choices[0], int) else "string", "enum": choices}


def _style_of(_converter: OpenAPIConverter, field: fields.Field[Any], **_: Any) -> Json:
    return {"style": "form", "explode": True} if isinstance(field, parameters.CommaSeparated) else {}


_SOMETIMES: Final = frozenset(
    {
        *(("Problem", name) for name in ("errors", "error_count", "case_id", "position")),
        *(("ParameterError", name) for name in ("parameter", "pointer", "line", "field")),
    }
)


def _say_what_is_there(name: str, schema: Json) -> None:
    """Complete an object's schema: which of its attributes an answer always has, and that there may come more."""
    del schema["additionalProperties"]
    schema["description"] = (getattr(schemas, f"{name}Schema").__doc__ or "").strip()
    schema["required"] = [attribute for attribute in schema["properties"] if (name, attribute) not in _SOMETIMES]


def _narrowed_by_fields(described: Json) -> Json:
    """Return the schemas of what `fields` leaves. Were they one with the others, each attribute could be missing."""
    said = "with the attributes that `fields` names, and no others."
    narrowed = {}
    for page, name in (("Page", "Case"), ("OrganizationPage", "OrganizationCase")):
        partial = f"Partial{name}"
        narrowed[partial] = {key: value for key, value in described[name].items() if key != "required"}
        narrowed[partial]["description"] = f"A case {said}"
        results = described[page]["properties"]["results"] | {"items": {"$ref": f"#/components/schemas/{partial}"}}
        properties = described[page]["properties"] | {"results": results}
        of_page = {"properties": properties, "description": f"A page whose cases are {said}"}
        narrowed[f"PageOf{partial}s"] = described[page] | of_page
    return narrowed

"""The OpenAPI description of each route: its texts, inputs, answers and errors."""

from dataclasses import dataclass
from typing import Any, Final

from marshmallow import Schema

from cases_service import errors
from cases_service.api import parameters
from cases_service.api.openapi.components import (
    ACTIVITY,
    CASE,
    EVENT,
    EXAMPLES,
    IMPORT_RUN,
    MESSAGE,
    NEW_CASE,
    OWN_MESSAGE,
    Json,
)
from cases_service.api.organization_parameters import OrganizationCollectionParameters
from cases_service.cases import schemas
from cases_service.errors import ProblemError
from cases_service.loading.imports import MAXIMUM_LINES
from cases_service.loading.load import IMPORTED_TYPES, MAXIMUM_ERRORS


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The description of a route apart from its path: its texts, inputs and answers.

    `etag` is the header that describes its ETag, if it has one; `answers` are its success statuses, each with the
    headers to describe; `body` is the schema of its body, with the media types that it may have.
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
        """Whether it answers with the URL of the case that it created."""
        return self.method == "post" and self.body == "NewCase"

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method != "get"


_HEALTH_PROBLEMS: Final = (errors.MethodNotAllowedError, errors.InternalError)
# Not found if operators have a separate address, and this is not it.
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
        "unchanged": {
            **_COUNT,
            "description": "Lines that changed nothing, or that a later line of the same row replaced.",
        },
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
        description="A page of the cases of all contacts assigned to the visitor. To continue, follow `next`"
        " unchanged: each case comes exactly once, whatever else changes meanwhile.",
        tag="Cases",
        parameters=parameters.CollectionParameters,
        schema=schemas.PageSchema,
        with_fields="PageOfPartialCases",
        example={"next": EXAMPLES["next"], "previous": None, "results": [CASE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.CaseNotFoundError),
    ),
    "cases.summarize_cases": Operation(
        summary="Count a visitor's cases",
        description="A summary of the cases that pass the filters, for a badge.",
        tag="Cases",
        parameters=parameters.FilterParameters,
        schema=schemas.SummarySchema,
        example=EXAMPLES["summary"],
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.CaseNotFoundError, errors.InvalidCursorError),
    ),
    "cases.get_case": Operation(
        summary="Show one case",
        description="One case of a contact assigned to the visitor.",
        tag="Cases",
        parameters=parameters.DetailParameters,
        schema=schemas.CaseSchema,
        with_fields="PartialCase",
        example=CASE,
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(errors.InvalidCursorError),
    ),
    "organization_cases.list_cases": Operation(
        summary="List an organization's cases",
        description="A page of all cases of the organization, with or without a contact, as they are now. To continue,"
        " follow `next` unchanged. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=OrganizationCollectionParameters,
        schema=schemas.OrganizationPageSchema,
        with_fields="PageOfPartialOrganizationCases",
        example={"next": None, "previous": None, "results": [CASE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=(
            *_of_organization(*_OF_BODIES, *_OF_WRITES, errors.CaseNotFoundError),
            errors.InvalidCursorError,
        ),
    ),
    "organization_cases.get_case": Operation(
        summary="Show one case to its organization",
        description="One case of the organization, with or without a contact, as it is now: the next request sees a"
        " case that was answered 201. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.DetailParameters,
        schema=schemas.OrganizationCaseSchema,
        with_fields="PartialOrganizationCase",
        example=CASE,
        etag="StrongETag",
        takes=("IfNoneMatch",),
        problems=_of_organization(*_OF_BODIES, *_OF_WRITES),
    ),
    "organization_cases.create_case": Operation(
        summary="Make a case",
        description="A new case under a new id. If repeated after a lost answer, it finds its `case_number`"
        " taken, and `case_id` names the case that it created. Needs the scope `cases:write`.",
        tag="Organization",
        method="post",
        parameters=parameters.Parameters,
        body="NewCase",
        body_example=NEW_CASE,
        schema=schemas.OrganizationCaseSchema,
        example=CASE,
        etag="StrongETag",
        answers=(201,),
        problems=_of_organization(errors.CaseNotFoundError, errors.PreconditionFailedError),
    ),
    "organization_cases.put_case": Operation(
        summary="Make or replace a case",
        description="A case under an id of yours. If it exists, attributes that the body leaves out become null or"
        " their default. Repeating it is harmless. Needs the scope `cases:write`.",
        tag="Organization",
        method="put",
        parameters=parameters.Parameters,
        body="NewCase",
        body_example=NEW_CASE,
        schema=schemas.OrganizationCaseSchema,
        example=CASE,
        etag="StrongETag",
        takes=("IfMatch", "IfNew"),
        answers=(200, 201),
        problems=_of_organization(),
    ),
    "organization_cases.change_case": Operation(
        summary="Change a case",
        description="Changes only the attributes that the body names (RFC 7396). Needs the scope `cases:write`.",
        tag="Organization",
        method="patch",
        parameters=parameters.Parameters,
        body="CaseChange",
        body_types=("application/merge-patch+json", "application/json"),
        body_example={"is_closed": True},
        schema=schemas.OrganizationCaseSchema,
        example=CASE,
        etag="StrongETag",
        takes=("IfMatch",),
        problems=_of_organization(),
    ),
    "organization_cases.delete_case": Operation(
        summary="Remove a case",
        description="Removes the case. If repeated, it is not found. Needs the scope `cases:write`.",
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
        example={"next": None, "previous": None, "results": [ACTIVITY]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(),
    ),
    "conversations.list_messages": Operation(
        summary="List the messages of a case",
        description="A page of a case's messages. Follow its links as for a page of cases.",
        tag="Cases",
        parameters=parameters.ConversationParameters,
        schema=schemas.MessagePageSchema,
        example={"next": None, "previous": None, "results": [MESSAGE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_of_visitors(),
    ),
    "conversations.create_message": Operation(
        summary="Say something in a case",
        description="201 with the message; sent again under the same `id`, 200 with the existing one. A case that"
        " is pending or closed reopens. Needs the scope `visitors:write`.",
        tag="Cases",
        method="post",
        parameters=parameters.Parameters,
        body="NewMessage",
        body_example={"id": MESSAGE["id"], "text": MESSAGE["text"]},
        schema=schemas.MessageSchema,
        example=MESSAGE,
        answers=(200, 201),
        problems=(*_OF_VISITORS_WRITES, errors.IdTakenError, errors.CaseClosedError),
    ),
    "conversations.mark_read": Operation(
        summary="Mark messages as read",
        description="Marks users' messages as read: all, or those up to a message. Repeating it is harmless. Needs the"
        " scope `visitors:write`.",
        tag="Cases",
        method="put",
        parameters=parameters.Parameters,
        body="ReadMark",
        body_example={"until": MESSAGE["id"]},
        schema=schemas.CaseSchema,
        example=CASE,
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
        example=CASE,
        problems=(*_OF_VISITORS_WRITES, errors.CaseClosedError),
    ),
    "organization_conversations.list_activities": Operation(
        summary="List the activities of a case to its organization",
        description="As the primary has them now, with notes counted. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.ConversationParameters,
        schema=schemas.ActivityPageSchema,
        example={"next": None, "previous": None, "results": [ACTIVITY]},
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
        example={"next": None, "previous": None, "results": [OWN_MESSAGE]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_OF_OWN_PAGES,
    ),
    "organization_conversations.create_message": Operation(
        summary="Answer in a case, or leave a note",
        description="201 with the message; sent again under the same `id`, 200 with the existing one. A message that"
        " is not private is visible to the visitor. Needs the scope `cases:write`.",
        tag="Organization",
        method="post",
        parameters=parameters.Parameters,
        body="NewOrganizationMessage",
        body_example={"text": "It has been repaired today.", "is_private": False},
        schema=schemas.OrganizationMessageSchema,
        example=OWN_MESSAGE,
        answers=(200, 201),
        problems=(*_OF_OWN_WRITES, errors.IdTakenError),
    ),
    "organization_conversations.mark_read": Operation(
        summary="Mark a visitor's messages as read",
        description="Marks the visitor's messages as read: all, or those up to a message. Repeating it is harmless."
        " Needs the scope `cases:write`.",
        tag="Organization",
        method="put",
        parameters=parameters.Parameters,
        body="ReadMark",
        body_example={},
        schema=schemas.OrganizationCaseSchema,
        example=CASE,
        etag="StrongETag",
        problems=_OF_OWN_WRITES,
    ),
    "organization_conversations.list_events": Operation(
        summary="List what visitors did",
        description="Every message, close, reopening and read mark of a visitor, in commit order. A client that"
        " continues from `last` misses nothing and sees nothing twice. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.EventParameters,
        schema=schemas.EventPageSchema,
        example={"results": [EVENT], "last": 1, "has_more": False},
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
        " decompressed; `Content-Encoding: gzip` is accepted. An `id`, and each reference to one, may be any text of"
        " yours of 1 to 128 characters. Repeating an import is harmless. Needs the scope `cases:write`.",
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
        description="The results of the organization's latest loads and imports, newest first; a thousand are"
        " kept. Needs the scope `cases:read`.",
        tag="Organization",
        parameters=parameters.ImportRunParameters,
        schema=schemas.ImportRunsSchema,
        example={"results": [IMPORT_RUN]},
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
        description="Answers 200 if the database answers and has the schema that this release needs, to any host."
        " The answer is kept for a second.",
        tag="Service",
        schema=_STATUS,
        example={"status": "ok"},
        problems=(*_OPERATION_PROBLEMS, errors.UnavailableError),
    ),
    "health.show_metrics": Operation(
        summary="What has been counted",
        description="The metrics of all workers in Prometheus' format, to any host.",
        tag="Service",
        media_type="text/plain",
        schema={"type": "string"},
        problems=_OPERATION_PROBLEMS,
    ),
    "docs.document": Operation(
        summary="This document",
        description="The interface as an OpenAPI 3.1 document. Not available with `CASES_DOCS=off`.",
        tag="Service",
        schema={"type": "object", "properties": {"openapi": {"const": "3.1.0"}}, "required": ["openapi"]},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_DOCS_PROBLEMS,
    ),
    "docs.page": Operation(
        summary="This document as a page",
        description="A page to read the document and try the interface. Not available with `CASES_DOCS=off`.",
        tag="Service",
        media_type="text/html; charset=utf-8",
        schema={"type": "string"},
        problems=_DOCS_PROBLEMS,
    ),
    "docs.file": Operation(
        summary="A file of the page",
        description="The scripts and styles of the page. Not available with `CASES_DOCS=off`.",
        tag="Service",
        media_type="text/*",
        schema={"type": "string"},
        etag="ETag",
        takes=("IfNoneMatch",),
        problems=_DOCS_PROBLEMS,
    ),
}

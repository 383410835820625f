"""The routes of a visitor's conversations. The order of the calls in a view is the order of the checks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import UUID

import orjson
from flask import Blueprint
from marshmallow import Schema

from cases_service.api.authentication import Steps, VisitorQuery
from cases_service.api.authorization import for_visitor, identified, writing_database
from cases_service.api.conversation_pages import JSON, JSON_OR_PATCH, respond_with_page, starting_point
from cases_service.api.page_links import link_of_visitor
from cases_service.api.parameters import ConversationParameters, Parameters, read_parameters
from cases_service.api.request import CasesRequest
from cases_service.api.request_body import read_body
from cases_service.api.response import Response
from cases_service.cases.conversation_bodies import CASE_STATE, NEW_MESSAGE, READ_MARK
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.schemas import CaseSchema, MessageSchema
from cases_service.cases.write_bodies import MAXIMUM_BODY, read_members
from cases_service.problems import CaseNotFoundError, VisitorNotFoundError
from cases_service.service import current_service
from cases_service.store import conversations as store
from cases_service.store.cases import Access
from cases_service.store.conversation_writing import CHANNEL_OF_VISITORS, ConversationWriter, NewMessage
from cases_service.store.conversations import FoundCase, Page, Things
from cases_service.store.organization_cases import StoredCase

blueprint = Blueprint(
    "conversations",
    __name__,
    url_prefix="/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases/<case_id>",
)

_PAGE: Final = ConversationParameters()
_NONE: Final = Parameters()
_MESSAGE: Final = tuple(MessageSchema().fields)
_CASE: Final = tuple(CaseSchema().fields)


@blueprint.get("/activities")
@for_visitor("visitors:read")
def list_activities(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Answer a page of the activities of a case."""
    return _list("activities", request, access, token, case_id)


@blueprint.get("/messages")
@for_visitor("visitors:read")
def list_messages(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Answer a page of the messages of a case."""
    return _list("messages", request, access, token, case_id)


@blueprint.post("/messages")
@for_visitor("visitors:write")
def create_message(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Write a message in a case."""

    def write(writer: ConversationWriter, given: dict[str, Any]) -> Response:
        said = writer.say(NewMessage(channel=CHANNEL_OF_VISITORS, **given))
        return _document({name: said.message[name] for name in _MESSAGE}, 201 if said.is_new else 200)

    return _write(request, access, token, case_id, body=NEW_MESSAGE, media_types=JSON, write=write)


@blueprint.put("/read")
@for_visitor("visitors:write")
def mark_read(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Mark the users' messages as read."""

    def write(writer: ConversationWriter, given: dict[str, Any]) -> Response:
        return _case(writer.mark_read(given.get("until")))

    return _write(request, access, token, case_id, body=READ_MARK, media_types=JSON, write=write)


@blueprint.patch("")
@for_visitor("visitors:write")
def change_case(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Close a case, or open it again."""

    def write(writer: ConversationWriter, given: dict[str, Any]) -> Response:
        return _case(writer.set_closed(given["is_closed"]))

    return _write(request, access, token, case_id, body=CASE_STATE, media_types=JSON_OR_PATCH, write=write)


def _list(things: Things, request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    parameters = read_parameters(_PAGE, request.query_string)
    given_id = uuid_or_none(case_id)
    collection, cursor = starting_point(things, parameters, access.organization_id, given_id, of="visitor")
    visitor = identified(request, access, token)
    query = store.list_things(
        things,
        organization_id=access.organization_id,
        case_id=given_id,
        external_id=visitor.external_id,
        ordering=collection.ordering,
        cursor=cursor,
        page_size=parameters["page_size"],
    )

    page: Page | None = yield VisitorQuery(query, visitor)
    if page is None:
        raise VisitorNotFoundError
    if cursor is not None:
        cursor.check_visitor(page.visitor_id)
    if not page.has_case:
        raise CaseNotFoundError
    link = partial(link_of_visitor, request, token, access.organization_id, below=f"/{given_id}/{things}")
    return respond_with_page(request, page, collection, link)


def _write(
    request: CasesRequest,
    access: Access,
    token: str,
    case_id: str,
    *,
    body: Schema,
    media_types: frozenset[str],
    write: Callable[[ConversationWriter, dict[str, Any]], Response],
) -> Steps:
    """Check in one state of the database that the visitor has access and owns the case, and then write."""
    database = writing_database()
    read_parameters(_NONE, request.query_string)
    visitor = identified(request, access, token)
    given = read_members(read_body(request, media_types=media_types, maximum=MAXIMUM_BODY), body)
    query = store.find_case(
        organization_id=access.organization_id, external_id=visitor.external_id, case_id=uuid_or_none(case_id)
    )

    found: FoundCase | None = yield VisitorQuery(query, visitor)
    if found is None:
        raise VisitorNotFoundError
    if found.case_id is None:
        raise CaseNotFoundError
    writer = ConversationWriter(
        database=database,
        organization_id=access.organization_id,
        case_id=UUID(found.case_id),
        external_id=visitor.external_id,
        closed_is_final=current_service().settings.closed_is_final,
    )
    return write(writer, given)


def _case(case: StoredCase) -> Response:
    return _document({name: case.document[name] for name in _CASE}, 200)


def _document(document: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(document), status, content_type="application/json")

"""The routes of an organization's conversations, with internal notes, and of the events of visitors' actions."""

from functools import partial
from typing import Any, Final
from uuid import UUID

import orjson
from flask import Blueprint
from marshmallow import Schema

from cases_service.api.authorization import for_organization, writing_database
from cases_service.api.conversation_pages import JSON, respond_with_page, starting_point
from cases_service.api.page_links import link_of_organization
from cases_service.api.parameters import ConversationParameters, EventParameters, Parameters, read_parameters
from cases_service.api.request import CasesRequest
from cases_service.api.request_body import read_body
from cases_service.api.response import Response
from cases_service.cases.conversation_bodies import NEW_ORGANIZATION_MESSAGE, READ_MARK
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.write_bodies import MAXIMUM_BODY, read_members
from cases_service.database.connection_pool import Database
from cases_service.problems import CaseNotFoundError, EventsGoneError
from cases_service.service import current_service
from cases_service.store import conversations as store
from cases_service.store.cases import Access
from cases_service.store.conversation_writing import ConversationWriter, NewMessage
from cases_service.store.conversations import Things
from cases_service.store.events import list_events as events_after

blueprint = Blueprint("organization_conversations", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>")

_PAGE: Final = ConversationParameters()
_EVENTS: Final = EventParameters()
_NONE: Final = Parameters()
_NO_CASE: Final = "The organization has no case with this id."


@blueprint.get("/cases/<case_id>/activities")
@for_organization("cases:read")
def list_activities(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Answer a page of the activities of a case, as the primary has them now."""
    return _list("activities", request, access, case_id)


@blueprint.get("/cases/<case_id>/messages")
@for_organization("cases:read")
def list_messages(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Answer a page of the messages of a case, as the primary has them now."""
    return _list("messages", request, access, case_id)


@blueprint.post("/cases/<case_id>/messages")
@for_organization("cases:write")
def create_message(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Write a message in a case, to its visitor or as an internal note."""
    database = writing_database()
    given = _given(request, NEW_ORGANIZATION_MESSAGE)
    writer = _writer(database, access, case_id)
    said = writer.say(NewMessage(**{"sender_user_id": str(access.user_id), **given}))
    body = orjson.dumps(said.message)
    return Response(body, 201 if said.is_new else 200, content_type="application/json")


@blueprint.put("/cases/<case_id>/read")
@for_organization("cases:write")
def mark_read(request: CasesRequest, access: Access, case_id: str) -> Response:
    """Mark the visitor's messages as read."""
    database = writing_database()
    given = _given(request, READ_MARK)
    case = _writer(database, access, case_id).mark_read(given.get("until"))
    headers = {"ETag": f'"{case.tag}"', "Cache-Control": "private, no-cache"}
    return Response(orjson.dumps(case.document), 200, headers, content_type="application/json")


@blueprint.get("/events")
@for_organization("cases:read")
def list_events(request: CasesRequest, access: Access) -> Response:
    """Answer the events of visitors' actions, in the order of the commits."""
    parameters = read_parameters(_EVENTS, request.query_string)
    after = parameters["after"]
    query = events_after(organization_id=access.organization_id, after=after, page_size=parameters["page_size"])
    events = current_service().database.ask(access.organization_id, query)
    if after < events.pruned_position:
        raise EventsGoneError(events.pruned_position)
    document = {"results": events.results, "last": events.last, "has_more": events.has_more}
    return Response(orjson.dumps(document), content_type="application/json")


def _list(things: Things, request: CasesRequest, access: Access, case_id: str) -> Response:
    parameters = read_parameters(_PAGE, request.query_string)
    given_id = uuid_or_none(case_id)
    collection, cursor = starting_point(things, parameters, access.organization_id, given_id, of="organization")
    query = store.list_things(
        things,
        organization_id=access.organization_id,
        case_id=given_id,
        external_id=None,
        ordering=collection.ordering,
        cursor=cursor,
        page_size=parameters["page_size"],
    )
    page = current_service().database.ask(access.organization_id, query, notes=True)
    if page is None:
        raise CaseNotFoundError(_NO_CASE)
    link = partial(link_of_organization, request, access.organization_id, below=f"/{given_id}/{things}")
    return respond_with_page(request, page, collection, link)


def _given(request: CasesRequest, schema: Schema) -> dict[str, Any]:
    read_parameters(_NONE, request.query_string)
    return read_members(read_body(request, media_types=JSON, maximum=MAXIMUM_BODY), schema)


def _writer(database: Database, access: Access, case_id: str) -> ConversationWriter:
    given_id: UUID | None = uuid_or_none(case_id)
    if given_id is None:
        raise CaseNotFoundError(_NO_CASE)
    return ConversationWriter(database=database, organization_id=access.organization_id, case_id=given_id)

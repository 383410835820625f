"""The routes of a visitor's cases. The order of the calls in a view is the order of the checks."""

from functools import partial
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from flask import Blueprint, Response, g, request

from cases_service import store
from cases_service.access import IDENTITY_HEADER, IN_HEADER, authenticate, identify
from cases_service.conditional import answer
from cases_service.cursors import Collection, Cursor
from cases_service.errors import CaseNotFoundError, VisitorNotFoundError
from cases_service.parameters import (
    CollectionParameters,
    DetailParameters,
    FilterParameters,
    filters_of,
    read_parameters,
)
from cases_service.schemas import SummarySchema
from cases_service.service import current_service

blueprint = Blueprint(
    "cases", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases"
)

_COLLECTION: Final = CollectionParameters()
_DETAIL: Final = DetailParameters()
_FILTERS: Final = FilterParameters()
_SUMMARY: Final = SummarySchema()


@blueprint.get("")
def list_cases(organization_id: UUID, token: str) -> Response:
    """Answer a page of the cases of all contacts of the visitor."""
    service = current_service()
    access = authenticate(request, organization_id, service.database)
    parameters = read_parameters(_COLLECTION, request.query_string)
    filters = filters_of(parameters)
    collection = Collection(organization_id, parameters["ordering"], filters.canonical())
    given = parameters["cursor"]
    cursor = None if given is None else Cursor.decode(given, collection)
    external_id = identify(request, token, access, service.secret_box, service.settings)
    page = service.cases.read(
        partial(
            store.list_cases,
            organization_id=organization_id,
            external_id=external_id,
            ordering=collection.ordering,
            filters=filters,
            fields=parameters["attributes"],
            cursor=cursor,
            page_size=parameters["page_size"],
        )
    )
    if page is None:
        raise VisitorNotFoundError
    if cursor is not None:
        cursor.check_visitor(page.visitor_id)
    following, preceding = (None if c is None else c.encode(collection) for c in (page.next, page.previous))

    def document() -> bytes:
        links = {"next": _link(token, organization_id, following), "previous": _link(token, organization_id, preceding)}
        return msgspec.json.encode({**links, "results": page.cases})

    return answer(request, document, page.represented, f"{following} {preceding} {request.args.get('fields')}".encode())


@blueprint.get("/summary")
def summarize_cases(organization_id: UUID, token: str) -> Response:
    """Answer the cases of the visitor in a few numbers."""
    service = current_service()
    access = authenticate(request, organization_id, service.database)
    filters = filters_of(read_parameters(_FILTERS, request.query_string))
    external_id = identify(request, token, access, service.secret_box, service.settings)
    summary = service.cases.read(
        partial(store.summarize_cases, organization_id=organization_id, external_id=external_id, filters=filters)
    )
    if summary is None:
        raise VisitorNotFoundError
    return _whole(_SUMMARY.dump(summary))


@blueprint.get("/<case_id>")
def get_case(organization_id: UUID, token: str, case_id: str) -> Response:
    """Answer one case of a contact of the visitor."""
    service = current_service()
    access = authenticate(request, organization_id, service.database)
    parameters = read_parameters(_DETAIL, request.query_string)
    external_id = identify(request, token, access, service.secret_box, service.settings)
    found = service.cases.read(
        partial(
            store.get_case,
            organization_id=organization_id,
            external_id=external_id,
            case_id=_uuid_or_none(case_id),
            fields=parameters["attributes"],
        )
    )
    if found is None:
        raise VisitorNotFoundError
    if found.case is None:
        raise CaseNotFoundError
    return _whole(found.case)


def _whole(document: dict[str, Any]) -> Response:
    body = msgspec.json.encode(document)
    return answer(request, lambda: body, body)


def _link(token: str, organization_id: UUID, cursor: str | None) -> str | None:
    """Return the URL of another page, with the token where the caller had it and the caller's other parameters."""
    if cursor is None:
        return None
    given = {name: value for name, value in request.args.items() if name != "cursor"}
    place = IN_HEADER if IDENTITY_HEADER in request.headers else token
    path = f"/api/v5/orgs/{organization_id}/external-visitors/{place}/cases"
    return f"{g.base_url}{path}?{urlencode({**given, 'cursor': cursor})}"


def _uuid_or_none(text: str) -> UUID | None:
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None

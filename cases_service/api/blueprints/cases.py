"""The routes of a visitor's cases. The order of the calls in a view is the order of the checks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from flask import Blueprint, Response

from cases_service.api.authentication import Asked
from cases_service.api.etag import answer, matches_etag
from cases_service.api.parameters import (
    CollectionParameters,
    DetailParameters,
    FilterParameters,
    read_parameters,
)
from cases_service.api.request import CasesRequest
from cases_service.api.routes import for_visitor, identified, link_of_visitor
from cases_service.cases.filters import Filters
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.pagination import Collection, Cursor
from cases_service.cases.schemas import SummarySchema
from cases_service.errors import CaseNotFoundError, VisitorNotFoundError
from cases_service.store import cases as store
from cases_service.store.cases import Access, Found, Page

blueprint = Blueprint(
    "cases", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases"
)

_COLLECTION: Final = CollectionParameters()
_DETAIL: Final = DetailParameters()
_FILTERS: Final = FilterParameters()
_SUMMARY: Final = SummarySchema()


@blueprint.get("")
@for_visitor("visitors:read")
def list_cases(request: CasesRequest, access: Access, token: str) -> Asked:
    """Answer a page of the cases of all contacts of the visitor."""
    parameters = read_parameters(_COLLECTION, request.query_string)
    filters: Filters = parameters["filters"]
    collection = Collection(access.organization_id, parameters["ordering"], filters.canonical())
    given = parameters["cursor"]
    cursor = None if given is None else Cursor.decode(given, collection)
    visitor = identified(request, access, token)
    ask = partial(
        store.list_cases,
        organization_id=access.organization_id,
        external_id=visitor.external_id,
        ordering=collection.ordering,
        filters=filters,
        fields=parameters["attributes"],
        cursor=cursor,
        page_size=parameters["page_size"],
    )
    respond = partial(_respond_with_page, request, token, collection, cursor)

    def ask_whole() -> Asked:
        return Asked(ask(), visitor, respond)

    if not request.if_none_match or parameters["attributes"] is not None:
        return ask_whole()
    # Most likely the caller has the page already. Where it has not, the page is asked for once more.
    return Asked(ask(whole=False), visitor, partial(respond, instead=ask_whole))


@blueprint.get("/summary")
@for_visitor("visitors:read")
def summarize_cases(request: CasesRequest, access: Access, token: str) -> Asked:
    """Answer the cases of the visitor in a few numbers."""
    filters = read_parameters(_FILTERS, request.query_string)["filters"]
    visitor = identified(request, access, token)
    query = store.summarize_cases(
        organization_id=access.organization_id, external_id=visitor.external_id, filters=filters
    )
    return Asked(query, visitor, partial(_respond_with_summary, request))


@blueprint.get("/<case_id>")
@for_visitor("visitors:read")
def get_case(request: CasesRequest, access: Access, token: str, case_id: str) -> Asked:
    """Answer one case of a contact of the visitor."""
    parameters = read_parameters(_DETAIL, request.query_string)
    visitor = identified(request, access, token)
    query = store.get_case(
        organization_id=access.organization_id,
        external_id=visitor.external_id,
        case_id=uuid_or_none(case_id),
        fields=parameters["attributes"],
    )
    return Asked(query, visitor, partial(_respond_with_case, request))


def _respond_with_page(
    request: CasesRequest,
    token: str,
    collection: Collection,
    cursor: Cursor | None,
    page: Page | None,
    *,
    instead: Callable[[], Asked] | None = None,
) -> Response | Asked:
    if page is None:
        raise VisitorNotFoundError
    if cursor is not None:
        cursor.check_visitor(page.visitor_id)
    following, preceding = (None if c is None else c.encode(collection) for c in (page.next, page.previous))

    def document() -> bytes:
        link = partial(link_of_visitor, request, token, collection.organization_id)
        return msgspec.json.encode({"next": link(following), "previous": link(preceding), "results": page.cases})

    represented = page.represented, f"{following} {preceding}".encode()
    if instead is not None and not matches_etag(request, *represented):
        return instead()
    return answer(request, document, *represented)


def _respond_with_summary(request: CasesRequest, summary: dict[str, Any] | None) -> Response:
    if summary is None:
        raise VisitorNotFoundError
    return _whole(request, _SUMMARY.dump(summary))


def _respond_with_case(request: CasesRequest, found: Found | None) -> Response:
    if found is None:
        raise VisitorNotFoundError
    if found.case is None:
        raise CaseNotFoundError
    return _whole(request, found.case)


def _whole(request: CasesRequest, document: dict[str, Any]) -> Response:
    body = msgspec.json.encode(document)
    return answer(request, lambda: body, body)

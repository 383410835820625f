"""The routes of a visitor's cases. The order of the calls in a view is the order of the checks."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson
from flask import Blueprint

from cases_service.api.authentication import Steps, VisitorQuery
from cases_service.api.authorization import for_visitor, identified
from cases_service.api.etag import answer, matches_etag, not_modified
from cases_service.api.page_links import link_of_visitor
from cases_service.api.parameters import (
    CollectionParameters,
    DetailParameters,
    FilterParameters,
    read_parameters,
)
from cases_service.api.request import CasesRequest
from cases_service.api.response import Response
from cases_service.cases.filters import Filters
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.pagination import Collection, Cursor
from cases_service.cases.schemas import SummarySchema
from cases_service.problems import CaseNotFoundError, VisitorNotFoundError
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
def list_cases(request: CasesRequest, access: Access, token: str) -> Steps:
    """Answer a page of the visitor's cases over all contacts."""
    parameters = read_parameters(_COLLECTION, request.query_string)
    filters: Filters = parameters["filters"]
    collection = Collection(access.organization_id, parameters["ordering"], filters.canonical())
    given = parameters["cursor"]
    cursor = None if given is None else Cursor.decode(given, collection)
    visitor = identified(request, access, token)
    page_query = partial(
        store.list_cases,
        organization_id=access.organization_id,
        external_id=visitor.external_id,
        ordering=collection.ordering,
        filters=filters,
        fields=parameters["attributes"],
        cursor=cursor,
        page_size=parameters["page_size"],
    )
    link = partial(link_of_visitor, request, token, access.organization_id)
    if request.if_none_match and parameters["attributes"] is None:
        # Most likely the caller has the page already, and checking that is cheaper than reading the page.
        page = _found(cursor, (yield VisitorQuery(page_query(whole=False), visitor)))
        etag_input = _etag_input(page, _cursors(page, collection))
        if matches_etag(request, *etag_input):
            return not_modified(*etag_input)
    page = _found(cursor, (yield VisitorQuery(page_query(), visitor)))
    cursors = _cursors(page, collection)
    return answer(request, lambda: _document(page, cursors, link), *_etag_input(page, cursors))


@blueprint.get("/summary")
@for_visitor("visitors:read")
def summarize_cases(request: CasesRequest, access: Access, token: str) -> Steps:
    """Answer a summary of the visitor's cases."""
    filters = read_parameters(_FILTERS, request.query_string)["filters"]
    visitor = identified(request, access, token)
    query = store.summarize_cases(
        organization_id=access.organization_id, external_id=visitor.external_id, filters=filters
    )
    summary = yield VisitorQuery(query, visitor)
    if summary is None:
        raise VisitorNotFoundError
    return _whole(request, _SUMMARY.dump(summary))


@blueprint.get("/<case_id>")
@for_visitor("visitors:read")
def get_case(request: CasesRequest, access: Access, token: str, case_id: str) -> Steps:
    """Answer one of the visitor's cases."""
    parameters = read_parameters(_DETAIL, request.query_string)
    visitor = identified(request, access, token)
    query = store.get_case(
        organization_id=access.organization_id,
        external_id=visitor.external_id,
        case_id=uuid_or_none(case_id),
        fields=parameters["attributes"],
    )
    found: Found | None = yield VisitorQuery(query, visitor)
    if found is None:
        raise VisitorNotFoundError
    if found.case is None:
        raise CaseNotFoundError
    return _whole(request, found.case)


def _found(cursor: Cursor | None, page: Page | None) -> Page:
    if page is None:
        raise VisitorNotFoundError
    if cursor is not None:
        cursor.check_visitor(page.visitor_id)
    return page


def _cursors(page: Page, collection: Collection) -> tuple[str | None, str | None]:
    """Return the cursors of the next and the previous page."""
    following, preceding = (
        None if cursor is None else cursor.encode(collection) for cursor in (page.next, page.previous)
    )
    return following, preceding


def _etag_input(page: Page, cursors: tuple[str | None, str | None]) -> tuple[bytes, bytes]:
    following, preceding = cursors
    return page.etag_input, f"{following} {preceding}".encode()


def _document(page: Page, cursors: tuple[str | None, str | None], link: Callable[[str | None], str | None]) -> bytes:
    following, preceding = cursors
    return orjson.dumps({"next": link(following), "previous": link(preceding), "results": page.cases})


def _whole(request: CasesRequest, document: dict[str, Any]) -> Response:
    body = orjson.dumps(document)
    return answer(request, lambda: body, body)

"""The routes of a visitor's cases. The order of the calls in a view is the order of the checks."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Final
from uuid import UUID

import msgspec
from flask import Blueprint, Response

from cases_service.api.authentication import IDENTITY_HEADER, IN_HEADER, Asked, Identity, identify
from cases_service.api.etag import answer, matches_etag
from cases_service.api.parameters import (
    CollectionParameters,
    DetailParameters,
    FilterParameters,
    read_parameters,
    without_cursor,
)
from cases_service.api.request import CasesRequest, current_request
from cases_service.cases.filters import Filters
from cases_service.cases.identifiers import uuid_or_none
from cases_service.cases.pagination import Collection, Cursor
from cases_service.cases.schemas import SummarySchema
from cases_service.credentials.scopes import check_scope
from cases_service.errors import CaseNotFoundError, VisitorNotFoundError
from cases_service.service import current_service
from cases_service.store import cases as store
from cases_service.store.cases import Access, Found, Page

blueprint = Blueprint(
    "cases", __name__, url_prefix="/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases"
)

_COLLECTION: Final = CollectionParameters()
_DETAIL: Final = DetailParameters()
_FILTERS: Final = FilterParameters()
_SUMMARY: Final = SummarySchema()


def _opened(view: Callable[..., Asked]) -> Callable[..., Response]:
    """Call a view with the request and what its API token opens; it asks, and is asked again where that has changed."""

    @wraps(view)
    def route(organization_id: UUID, **given: str) -> Response:
        request = current_request()

        def checked(access: Access) -> Asked:
            check_scope(access.scopes, "visitors:read")
            return view(request, access, **given)

        return current_service().gate.answer(request, organization_id, checked)

    return route


@blueprint.get("")
@_opened
def list_cases(request: CasesRequest, access: Access, token: str) -> Asked:
    """Answer a page of the cases of all contacts of the visitor."""
    parameters = read_parameters(_COLLECTION, request.query_string)
    filters: Filters = parameters["filters"]
    collection = Collection(access.organization_id, parameters["ordering"], filters.canonical())
    given = parameters["cursor"]
    cursor = None if given is None else Cursor.decode(given, collection)
    visitor = _identify(request, access, token)
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
@_opened
def summarize_cases(request: CasesRequest, access: Access, token: str) -> Asked:
    """Answer the cases of the visitor in a few numbers."""
    filters = read_parameters(_FILTERS, request.query_string)["filters"]
    visitor = _identify(request, access, token)
    query = store.summarize_cases(
        organization_id=access.organization_id, external_id=visitor.external_id, filters=filters
    )
    return Asked(query, visitor, partial(_respond_with_summary, request))


@blueprint.get("/<case_id>")
@_opened
def get_case(request: CasesRequest, access: Access, token: str, case_id: str) -> Asked:
    """Answer one case of a contact of the visitor."""
    parameters = read_parameters(_DETAIL, request.query_string)
    visitor = _identify(request, access, token)
    query = store.get_case(
        organization_id=access.organization_id,
        external_id=visitor.external_id,
        case_id=uuid_or_none(case_id),
        fields=parameters["attributes"],
    )
    return Asked(query, visitor, partial(_respond_with_case, request))


def _identify(request: CasesRequest, access: Access, token: str) -> Identity:
    service = current_service()
    return identify(request, token, access, service.secret_box, service.settings)


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
        link = partial(_link, request, token, collection.organization_id)
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


def _link(request: CasesRequest, token: str, organization_id: UUID, cursor: str | None) -> str | None:
    """Return the URL of another page, with the token where the caller had it and the caller's other parameters."""
    if cursor is None:
        return None
    others = without_cursor(request.query_string)
    place = IN_HEADER if IDENTITY_HEADER in request.headers else token
    path = f"/api/v5/orgs/{organization_id}/external-visitors/{place}/cases"
    return f"{request.service_url}{path}?{others}{'&' if others else ''}cursor={cursor}"

"""Builds `next` and `previous`: the URLs of a page's neighbours."""

from uuid import UUID

from cases_service.api.authentication import IDENTITY_HEADER, IN_HEADER
from cases_service.api.parameters import without_cursor
from cases_service.api.request import CasesRequest


def link_of_visitor(
    request: CasesRequest, token: str, organization_id: UUID, cursor: str | None, *, below: str = ""
) -> str | None:
    """Return the URL of another page of a visitor's cases, or of a collection below them.

    It has the token in the caller's place, and the caller's other parameters.
    """
    place = IN_HEADER if IDENTITY_HEADER in request.headers else token
    return _link(request, f"/api/v5/orgs/{organization_id}/external-visitors/{place}/cases{below}", cursor)


def link_of_organization(
    request: CasesRequest, organization_id: UUID, cursor: str | None, *, below: str = ""
) -> str | None:
    """Return the URL of another page of an organization's cases, or of a collection below them.

    It has the caller's other parameters.
    """
    return _link(request, f"/api/v5/orgs/{organization_id}/cases{below}", cursor)


def _link(request: CasesRequest, path: str, cursor: str | None) -> str | None:
    if cursor is None:
        return None
    others = without_cursor(request.query_string)
    return f"{request.service_url}{path}?{others}{'&' if others else ''}cursor={cursor}"

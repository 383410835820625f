"""Shared by the routes of visitors and of organizations: authorization, the writer's database, and page links."""

from collections.abc import Callable
from functools import wraps
from uuid import UUID

from flask import Response

from cases_service.api.authentication import IDENTITY_HEADER, IN_HEADER, Identity, Steps, identify
from cases_service.api.parameters import without_cursor
from cases_service.api.request import CasesRequest, current_request
from cases_service.credentials.scopes import Scope, check_scope
from cases_service.database.connection_pool import Database
from cases_service.errors import ReadOnlyDeploymentError
from cases_service.service import current_service
from cases_service.store.cases import Access

View = Callable[..., Response]


def for_visitor(scope: Scope) -> Callable[[Callable[..., Steps]], View]:
    """Run a view with the request and its API token's access, if that has the scope.

    The view yields its queries. If the access has changed meanwhile, it is run again from the start. A view that writes
    is checked on the primary only.
    """

    def decorate(view: Callable[..., Steps]) -> View:
        @wraps(view)
        def route(organization_id: UUID, **given: str) -> Response:
            request = current_request()

            def checked(access: Access) -> Steps:
                check_scope(access.scopes, scope)
                return view(request, access, **given)

            writes = scope == "visitors:write"
            return current_service().gate.answer(request, organization_id, checked, by_primary=writes)

        return route

    return decorate


def for_organization(scope: Scope) -> Callable[[View], View]:
    """Call a view with the request and its API token's access, if that has the scope."""

    def decorate(view: View) -> View:
        @wraps(view)
        def route(organization_id: UUID, **given: str) -> Response:
            request = current_request()
            access = current_service().gate.open(request, organization_id)
            check_scope(access.scopes, scope)
            return view(request, access, **given)

        return route

    return decorate


def identified(request: CasesRequest, access: Access, token: str) -> Identity:
    """Return the visitor that the request's JWT names."""
    service = current_service()
    return identify(request, token, access, service.secret_box, service.settings)


def writing_database() -> Database:
    """Return the database for writes.

    Raises:
        ReadOnlyDeploymentError: The service only reads.

    """
    database = current_service().writer
    if database is None:
        raise ReadOnlyDeploymentError
    return database


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

"""Authorizes a route's caller: the API token's scope, the JWT's visitor, and whether this service may write."""

from collections.abc import Callable
from functools import wraps
from uuid import UUID

from cases_service.api.authentication import Identity, Steps, identify
from cases_service.api.request import CasesRequest, current_request
from cases_service.api.response import Response
from cases_service.credentials.scopes import Scope, check_scope
from cases_service.database.connection_pool import Database
from cases_service.problems import ReadOnlyDeploymentError
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

"""Creates the WSGI application; every request gets an id, the common headers and a line in the log."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from flask import Flask, Request
from flask.sessions import NullSession, SessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import MapAdapter, UUIDConverter

from cases_service.api import error_handlers
from cases_service.api.blueprints import (
    cases,
    conversations,
    docs,
    health,
    import_runs,
    imports,
    organization_cases,
    organization_conversations,
)
from cases_service.api.request import CasesRequest, current_request
from cases_service.api.response import Response
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection import query_count
from cases_service.database.connection_pool import Database
from cases_service.database.nodes import DatabaseOfNodes
from cases_service.observability import metrics, request_log, tracing
from cases_service.observability.logs import configure, method_label
from cases_service.problems import NotFoundError, OverloadedError
from cases_service.server.queue_time import arrival
from cases_service.service import Service, current_service
from cases_service.settings import DemoCredentials, Settings, inherited_demo_credentials, read_settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_HEADERS: Final = (
    ("Vary", "Authorization, X-External-Identity"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class _NoSessions(SessionInterface):
    """Gives every request the same session, which is empty and cannot be changed: the API has none."""

    _null = NullSession()

    def open_session(self, _app: Flask, _request: Request) -> NullSession:
        """Return it."""
        return self._null


class _OrganizationId(UUIDConverter):
    """A UUID in a path. The same organizations come again and again, and a UUID takes a while to make."""

    to_python = staticmethod(lru_cache(maxsize=1024)(UUID))


class Application(Flask):
    """Flask with its own rules for host and target, and without Flask's error log, which would have the path."""

    request_class = CasesRequest
    response_class = Response
    session_interface = _NoSessions()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request. The host of an absolute target replaces Host (RFC 9112, section 3.2.2)."""
        target = environ.get("RAW_URI", "/")
        if "://" in target and not target.startswith("/") and "HTTP_HOST" in environ:
            environ["HTTP_HOST"] = urlsplit(target).netloc

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            # Appended below Flask, so no header lookup is paid.
            return start_response(status, [*headers, *_HEADERS, ("X-Request-ID", current_request().id)], *error)

        return super().__call__(environ, start)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Match by path and method only, which is cheaper: `Service.base_url` checks the host."""
        if request is None:
            return super().create_url_adapter(request)
        return MapAdapter(self.url_map, "", "/", "", request.scheme, request.path, request.method)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function: none of the service's is asynchronous, and Flask would look at each for each request."""
        return func

    def log_exception(self, exc_info: object) -> None:
        """Log an exception that escaped the error handlers, without the path."""
        request_log.log.error("unexpected_error", exc_info=exc_info)

    def start_draining(self) -> float:
        """Report unready; return the seconds to keep accepting."""
        service: Service = self.extensions["cases_service"]
        service.readiness.is_stopping = True
        return service.settings.drain_seconds

    def close(self) -> None:
        """Close the connections to the database, when the worker ends."""
        service: Service = self.extensions["cases_service"]
        service.close()


def create_app(settings: Settings | None = None, demo_credentials: DemoCredentials | None = None) -> Application:
    """Return the application of one worker. Its pool starts connecting at once, in the background.

    Raises:
        SettingsError: A setting is invalid, or DATABASE_URL is missing.

    """
    if settings is None:
        settings, demo_credentials = read_settings(), inherited_demo_credentials()
    kind = DatabaseOfNodes if settings.citus_nodes else Database
    database = kind(settings.require_database_url(), settings)
    configure(settings)
    app = Application("cases_service", static_folder=None)
    service = Service(settings, database, SecretBox(settings.secret_keys), demo_credentials)
    app.extensions["cases_service"] = service
    add_routes(app, with_docs=settings.docs == "on", with_demo=demo_credentials is not None)
    tracing.trace(app)
    app.before_request(_begin)
    app.after_request(_finish)
    if service.rate_limits is not None:
        app.after_request(service.rate_limits.show)
    error_handlers.register(app)
    if settings.trusted_hops:
        hops = settings.trusted_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    service.open()
    return app


def add_routes(app: Flask, *, with_docs: bool, with_demo: bool = False) -> None:
    """Add every route of the service, matched without redirects."""
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters["uuid"] = _OrganizationId
    for module in (cases, conversations, organization_cases, organization_conversations, imports, import_runs, health):
        app.register_blueprint(module.blueprint)
    if with_docs:
        app.register_blueprint(docs.blueprint)
    if with_docs and with_demo:
        app.register_blueprint(docs.demo)


def _begin() -> None:
    asked = current_request()
    query_count.value, query_count.seconds = 0, 0.0
    service = current_service()
    service.check_address(asked)
    if asked.path.rstrip("/") not in health.PATHS:
        if arrival.seconds_waited > service.settings.pool_timeout or "cases.overloaded" in asked.environ:
            raise OverloadedError
        asked.service_url = service.base_url(asked)
    # Flask would drop surplus leading slashes.
    if asked.environ["PATH_INFO"].startswith("//"):
        raise NotFoundError


def _finish(response: Response) -> Response:
    asked = current_request()
    response.headers.setdefault("Cache-Control", "private, no-store")
    organization = (asked.view_args or {}).get("organization_id")
    method, route = method_label(asked.method), None if asked.url_rule is None else asked.url_rule.rule
    status, code, seconds = response.status_code, asked.code, perf_counter() - asked.started
    metrics.count_request(route, method, status=status, code=code, seconds=seconds, database=query_count)
    request_log.write(
        request_id=asked.id,
        method=method,
        route=route,
        status=status,
        code=code,
        organization_id=organization if isinstance(organization, UUID) else None,
        seconds=seconds,
        queries=query_count.value,
    )
    return response

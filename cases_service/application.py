"""Makes the WSGI application, and gives every request what all of them share: an id, headers and a line in the log."""

import re
import secrets
from time import perf_counter
from typing import Final
from uuid import UUID

import structlog
from flask import Flask, Request, Response, g
from flask.globals import request_ctx
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import MapAdapter

from cases_service import problems
from cases_service.arrivals import arrival
from cases_service.blueprints import cases, health
from cases_service.database import Database, query_count
from cases_service.errors import OverloadedError
from cases_service.logs import configure, method_label
from cases_service.secret_box import SecretBox
from cases_service.service import Service, current_service
from cases_service.settings import Settings, read_settings

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADERS: Final = (
    ("Vary", "Authorization, X-External-Identity"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)

log = structlog.get_logger("cases_service.request")


class Application(Flask):
    """Flask, apart from its log of errors, which would name the path, and from its look at the host."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Match by path and method alone, and at less cost: which hosts may ask is for `Service.base_url` to say."""
        if request is None:
            return super().create_url_adapter(request)
        return MapAdapter(self.url_map, "", "/", "", request.scheme, request.path, request.method)

    def log_exception(self, exc_info: object) -> None:
        """Log what escaped the error handlers, without the path."""
        log.error("unexpected_error", exc_info=exc_info)

    def begin_to_stop(self) -> float:
        """Be ready no more, and return for how many seconds requests are to be taken all the same."""
        service: Service = self.extensions["cases_service"]
        service.readiness.is_stopping = True
        return service.settings.drain_seconds

    def close(self) -> None:
        """End the connections to the database, when the worker ends."""
        service: Service = self.extensions["cases_service"]
        service.close()


def create_app(settings: Settings | None = None) -> Application:
    """Return the application of one worker. Its pool begins to connect at once, in the background.

    Raises:
        SettingsError: A setting is wrong, or there is no DATABASE_URL.

    """
    settings = settings or read_settings()
    database = Database(settings.require_database_url(), settings)
    configure(settings)
    app = Application("cases_service", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    service = Service(settings, database, SecretBox(settings.secret_keys))
    app.extensions["cases_service"] = service
    app.register_blueprint(cases.blueprint)
    app.register_blueprint(health.blueprint)
    app.before_request(_begin)
    app.after_request(_finish)
    problems.register(app)
    if settings.trusted_hops:
        hops = settings.trusted_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    service.open()
    return app


def _begin() -> None:
    g.started = perf_counter()
    asked = request_ctx.request
    given = asked.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
    query_count.value = 0
    if asked.path.rstrip("/") not in health.PATHS:
        service = current_service()
        if arrival.seconds_waited > service.settings.pool_timeout:
            raise OverloadedError
        g.base_url = service.base_url(asked)


def _finish(response: Response) -> Response:
    asked = request_ctx.request
    response.headers.extend((*_HEADERS, ("X-Request-ID", g.request_id)))
    response.headers.setdefault("Cache-Control", "private, no-store")
    organization = (asked.view_args or {}).get("organization_id")
    log.info(
        "request",
        request_id=g.request_id,
        method=method_label(asked.method),
        route=None if asked.url_rule is None else asked.url_rule.rule,
        status=response.status_code,
        code=g.get("code"),
        organization=str(organization) if isinstance(organization, UUID) else None,
        duration_ms=round((perf_counter() - g.started) * 1000, 2),
        queries=query_count.value,
    )
    return response

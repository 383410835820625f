"""The objects that the requests of one worker share, and readiness, addresses and the base URL of links."""

import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

import psycopg
from flask import Request, current_app

from cases_service.api.authentication import Gate
from cases_service.credentials.last_use import LastUse
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database import server_state
from cases_service.database.connection_pool import Database
from cases_service.database.migrations import SCHEMA_VERSION
from cases_service.database.replicas import Replicas
from cases_service.observability import metrics
from cases_service.problems import (
    HostNotAllowedError,
    NotFoundError,
    OverloadedError,
    ProblemError,
    UnavailableError,
)
from cases_service.server.listener import LISTENER
from cases_service.settings import DemoCredentials, Settings
from cases_service.store import import_runs

if TYPE_CHECKING:
    from cases_service.api.rate_limits import RateLimits

OPERATOR_PATHS: Final = ("/readyz", "/metrics")
"""The paths that are served only on CASES_ADMIN_BIND if it is set."""

_AT_BOTH: Final = "/healthz"
_READINESS_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
_COUNT_SECONDS: Final = 1.0
_FEEDS_SECONDS: Final = 60.0
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z_.-]+)(?::[0-9]{1,5})?")


class Readiness:
    """Whether the database answers within two seconds and has the right schema. A result is cached for one second.

    It does not change while all connections are in use: reporting a busy instance unready would only overload the
    others.
    """

    is_stopping = False
    """Set when the service begins to drain."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._checked_at = -inf
        self._problem: ProblemError | None = None

    def check(self) -> None:
        """Raise UnavailableError unless the service is ready."""
        if self.is_stopping:
            raise UnavailableError("The service is about to stop.")
        # During another request's check, return the cached result: few threads serve this address, and /metrics needs
        # one.
        if self._lock.acquire(blocking=self._checked_at == -inf):
            try:
                if monotonic() - self._checked_at >= _READINESS_SECONDS:
                    self._problem = self._ask()
                    self._checked_at = monotonic()
            finally:
                self._lock.release()
        if self._problem is not None:
            raise UnavailableError(self._problem.detail)

    def _ask(self) -> ProblemError | None:
        try:
            version = self._database.read(server_state.get_schema_version, within=_ANSWER_SECONDS)
        except OverloadedError:
            return self._problem
        except ProblemError as problem:
            return problem
        if version < SCHEMA_VERSION:
            return UnavailableError("The schema of the database is older than the service: run cases-service init-db.")
        return None


@dataclass(eq=False)
class Service:
    """The shared objects of one application, and so of one worker.

    `database` is the primary, where tokens, keys and subscriptions are read; `cases` may read from replicas, with a
    lag. `writer` is the primary under the role that writes, None if the service only reads. `rate_limits` is None if no
    limit is set. `demo_credentials` is only for the pages of a demo.
    """

    settings: Settings
    database: Database
    secret_box: SecretBox
    demo_credentials: DemoCredentials | None = None
    cases: Replicas = field(init=False)
    gate: Gate = field(init=False)
    readiness: Readiness = field(init=False)
    last_use: LastUse = field(init=False)
    writer: Database | None = field(init=False)
    rate_limits: "RateLimits | None" = field(init=False)
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.cases = Replicas(self.database, self.settings)
        self.rate_limits = _rate_limits(self.settings)
        self.last_use = LastUse(self.database)
        self.gate = Gate(self.database, self.cases, self.rate_limits, self.last_use)
        self.readiness = Readiness(self.database)
        write_url = self.settings.write_database_url
        self.writer = None if write_url is None else Database(write_url, self.settings, name="writer")

    def open(self) -> None:
        """Start connecting, in the background."""
        self.database.open()
        self.cases.open()
        if self.writer is not None:
            self.writer.open()
        self.last_use.open()
        metrics.start()
        threading.Thread(target=self._count, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self._closing.set()
        self.last_use.close()
        self.cases.close()
        if self.writer is not None:
            self.writer.close()
        self.database.close()
        if self.rate_limits is not None:
            self.rate_limits.close()

    def _count(self) -> None:
        # One worker answers a scrape, and knows the other workers' pools only from what they have recorded.
        looked_at = -inf
        while True:
            self.database.count()
            self.cases.count()
            if self.writer is not None:
                self.writer.count()
            if monotonic() - looked_at >= _FEEDS_SECONDS:
                looked_at = monotonic()
                self._look_at_feeds()
            if self._closing.wait(_COUNT_SECONDS):
                return

    def _look_at_feeds(self) -> None:
        # Where the database is away, or its schema is older, what was seen last stays.
        with suppress(ProblemError, psycopg.Error):
            metrics.show_late_feeds(self.database.read(import_runs.count_late_feeds, within=_ANSWER_SECONDS))

    def check_address(self, request: Request) -> None:
        """Raise NotFoundError if the path belongs to the other address, of CASES_BIND and CASES_ADMIN_BIND."""
        if self.settings.admin_bind is None:
            return
        at_operators = self.settings.is_admin_address(_listener_of(request))
        path = request.path.rstrip("/")
        if path != _AT_BOTH and at_operators != (path in OPERATOR_PATHS):
            raise NotFoundError

    def base_url(self, request: Request) -> str:
        """Return the base URL of links.

        Raises:
            HostNotAllowedError: No public URL is set, and the request names a host that is not allowed.

        """
        if self.settings.public_url is not None:
            return self.settings.public_url.rstrip("/")
        host = request.environ.get("HTTP_HOST", "")
        name = _HOST.fullmatch(host.lower())
        if name is None or name[1] not in self.settings.allowed_host_names:
            raise HostNotAllowedError
        scheme = "https" if request.scheme == "https" else "http"
        return f"{scheme}://{host}"


def _rate_limits(settings: Settings) -> "RateLimits | None":
    if not settings.limits_rates:
        return None
    from cases_service.api.rate_limits import RateLimits  # noqa: PLC0415  its library takes a tenth of a second

    return RateLimits(settings)


def current_service() -> Service:
    """Return the service of the current application."""
    service: Service = current_app.extensions["cases_service"]
    return service


def _listener_of(request: Request) -> object:
    """Return the name of the socket that received a request, regardless of a proxy's headers."""
    # The worker sets it: for a Unix socket, gunicorn takes SERVER_PORT from the client's Host.
    if LISTENER in request.environ:
        return request.environ[LISTENER]
    environ = request.environ.get("werkzeug.proxy_fix.orig", request.environ)
    return environ["SERVER_NAME"], int(environ["SERVER_PORT"])

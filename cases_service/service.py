"""What the views of one worker share: settings, database, secrets, and where links begin."""

import re
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from flask import Request, current_app

from cases_service import store
from cases_service.access import Gate
from cases_service.database import Database
from cases_service.errors import HostNotAllowedError, ProblemError, UnavailableError
from cases_service.last_use import LastUse
from cases_service.migrations import SCHEMA_VERSION
from cases_service.replicas import Replicas
from cases_service.secret_box import SecretBox
from cases_service.settings import Settings

_READINESS_SECONDS: Final = 1.0
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z_.-]+)(?::[0-9]{1,5})?")


class Readiness:
    """Whether the database answers and has the right schema; an answer is kept for a second."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._checked_at = -_READINESS_SECONDS
        self._problem: ProblemError | None = None

    def check(self) -> None:
        """Raise UnavailableError unless the service is ready."""
        with self._lock:
            if monotonic() - self._checked_at >= _READINESS_SECONDS:
                self._problem = self._ask()
                self._checked_at = monotonic()
        if self._problem is not None:
            raise UnavailableError(self._problem.detail)

    def _ask(self) -> ProblemError | None:
        try:
            version = self._database.read(store.get_schema_version)
        except ProblemError as problem:
            return problem
        if version < SCHEMA_VERSION:
            return UnavailableError("The schema of the database is older than the service: run cases-service init-db.")
        return None


@dataclass(frozen=True)
class Service:
    """One for each application, so one for each worker.

    `database` is the primary, where tokens, keys and subscriptions are read; `cases` reads what may be a little late.
    """

    settings: Settings
    database: Database
    secret_box: SecretBox
    cases: Replicas = field(init=False)
    gate: Gate = field(init=False)
    readiness: Readiness = field(init=False)
    last_use: LastUse = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cases", Replicas(self.database, self.settings))
        object.__setattr__(self, "last_use", LastUse(self.database))
        object.__setattr__(self, "gate", Gate(self.database, self.cases, self.last_use))
        object.__setattr__(self, "readiness", Readiness(self.database))

    def open(self) -> None:
        """Begin to connect, in the background."""
        self.database.open()
        self.cases.open()
        self.last_use.open()

    def close(self) -> None:
        """End the connections."""
        self.last_use.close()
        self.cases.close()
        self.database.close()

    def base_url(self, request: Request) -> str:
        """Return what links begin with.

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


def current_service() -> Service:
    """Return the service of the application that handles the request."""
    service: Service = current_app.extensions["cases_service"]
    return service

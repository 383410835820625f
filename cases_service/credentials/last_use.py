"""Records in a background thread when API tokens and signing keys were last used. No request waits for it.

It tells operators when an old key is safe to retire, so a precision of about a minute is enough. A use that cannot be
written (the database is unreachable or read-only) is dropped, since the next one will follow.
"""

import threading
from collections import defaultdict, deque
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import structlog

from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query
from cases_service.database.statements import numbered

_SQL: Final = numbered("last_use")
_INTERVAL_SECONDS: Final = 60.0
_GATHER_SECONDS: Final = 2.0

log = structlog.get_logger()


class Use(NamedTuple):
    """A use of an organization's token, by its hash, or signing key, by its id."""

    organization_id: UUID
    credential: bytes | UUID


class LastUse:
    """Records uses, at most once a minute for each token and key."""

    def __init__(self, database: Database, *, gather_seconds: float = _GATHER_SECONDS) -> None:
        self._database = database
        self._gather_seconds = gather_seconds
        self._noted: dict[Use, float] = {}
        self._pending: deque[Use] = deque()
        self._something = threading.Event()
        self._closing = threading.Event()
        self._fails = False
        self._writer = threading.Thread(target=self._run, name="last use", daemon=True)

    def open(self) -> None:
        """Start writing, in the background."""
        self._writer.start()

    def close(self) -> None:
        """Stop soon, without waiting; drop the uses not written yet."""
        self._closing.set()
        self._something.set()

    def note(self, organization_id: UUID, credential: bytes | UUID) -> None:
        """Note the use of a proven credential. Costs one look-up in memory."""
        use, now = Use(organization_id, credential), monotonic()
        if now - self._noted.get(use, -inf) >= _INTERVAL_SECONDS:
            self._noted[use] = now
            self._pending.append(use)
            self._something.set()

    def _run(self) -> None:
        while self._something.wait() and not self._closing.wait(self._gather_seconds):
            self._something.clear()
            self._write([self._pending.popleft() for _ in range(len(self._pending))])
            self._forget()

    def _write(self, uses: list[Use]) -> None:
        try:
            self._database.write(partial(_record, uses))
        except psycopg.Error as error:
            if not self._fails:
                log.warning("last_use_not_recorded", error=type(error).__name__, sqlstate=error.sqlstate)
            self._fails = True
        else:
            self._fails = False

    def _forget(self) -> None:
        """Keep only the uses of the last minute in memory."""
        now = monotonic()
        for use, noted in self._noted.copy().items():
            if now - noted >= _INTERVAL_SECONDS:
                del self._noted[use]


def _record(uses: list[Use], connection: Connection) -> None:
    by_organization = defaultdict(list)
    for use in uses:
        by_organization[use.organization_id].append(use.credential)
    for organization_id, credentials in by_organization.items():
        tokens = [credential for credential in credentials if isinstance(credential, bytes)]
        keys = [credential for credential in credentials if isinstance(credential, UUID)]
        connection.ask(
            organization_id,
            _change("record_token_uses", organization_id=organization_id, token_hashes=tokens),
            _change("record_key_uses", organization_id=organization_id, key_ids=keys),
        )


def _change(name: str, **parameters: Any) -> Query[None]:
    return Query(_SQL[name], parameters, lambda _: None)

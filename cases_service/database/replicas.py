"""Reads from streaming replicas whose lag is small enough, and from the primary if there is none.

The lag is measured by the write-ahead log alone: the primary's position is recorded with the time as a mark, and a
replica's lag is the age of the newest mark it has replayed. That needs no common clock and no traffic on the primary,
and the lag of a replica that is cut off from its primary grows like that of a slow one.
"""

import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import psycopg
import structlog

from cases_service.database import connection_strings, server_state
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database, Reader
from cases_service.database.fair_turns import THE_SERVICE, Whose
from cases_service.database.pipeline import Query
from cases_service.errors import OverloadedError, ProblemError, UnavailableError
from cases_service.observability import metrics
from cases_service.settings import Settings

T = TypeVar("T")
U = TypeVar("U")

_CHECK_SECONDS: Final = 1.0
_CHECKS_WITHIN_LAG: Final = 4

log = structlog.get_logger()


class Replicas(Reader):
    """Reads from the replicas within the maximum lag, in turn, or from the primary if there is none."""

    def __init__(self, primary: Database, settings: Settings) -> None:
        self._primary = primary
        self._replicas = [Replica(url, primary, settings) for url in single_hosts(settings.read_database_url)]
        self._turns = count()

    def open(self) -> None:
        """Start connecting and watching, in the background."""
        for replica in self._replicas:
            replica.open()

    def close(self) -> None:
        """Close the connections."""
        for replica in self._replicas:
            replica.close()

    def count(self) -> None:
        """Update the pools' metrics."""
        for replica in self._replicas:
            replica.count()

    def ask_judged(
        self, organization_id: UUID, judged: Query[T], query: Query[U], *, links: Query[Any], visitor: str
    ) -> tuple[T, U]:
        """Return the result of `judged` on the primary, and the result of a query about a visitor.

        Both are true of one state of the database. So a replica's result counts only if `judged` and `links` return the
        same in the replica's state as on the primary, that is, if access and the visitor's contacts have not changed.
        Otherwise the primary answers both.
        """
        if any(replica.is_ready for replica in self._replicas):
            now = self._primary.ask_all(organization_id, judged, links, visitor=visitor)
            *then, answer = self.ask_all(organization_id, judged, links, query, visitor=visitor)
            if then == now:
                return now[0], answer
        return self._primary.ask_both(organization_id, judged, query, visitor=visitor)

    def read(self, work: Callable[[Connection], T], *, whose: Whose = THE_SERVICE) -> T:
        """Return the result of `work`, which may be `CASES_READ_MAX_LAG` old. It raises the errors of `Database.read`.

        If a replica fails (it is unreachable, or its recovery conflicts with the read), the primary is asked instead,
        but not if the replica is overloaded: that would only overload the primary too.
        """
        ready = [replica for replica in self._replicas if replica.is_ready]
        if ready:
            try:
                return ready[next(self._turns) % len(ready)].read(work, whose=whose)
            except OverloadedError:
                raise
            except UnavailableError:
                pass
        return self._primary.read(work, whose=whose)


class _Mark(NamedTuple):
    """A lower bound of the end of the primary's WAL at a time."""

    at: float
    end: int


class Replica:
    """One replica: its connections, and its position, which a thread queries once a second."""

    def __init__(self, url: str, primary: Database, settings: Settings) -> None:
        self._primary = primary
        self._name = name_of(url)
        self._database = Database(url, settings, name=self._name, may_follow=True)
        self._maximum_lag = settings.read_max_lag
        self._marks: deque[_Mark] = deque()
        self._as_of = -inf
        self._answers = False
        self._was_ready: bool | None = None
        self._closing = False
        self._ask_now = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"replica {self._name}", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether it answers and has replayed all that was committed `CASES_READ_MAX_LAG` ago."""
        return self._answers and monotonic() - self._as_of <= self._maximum_lag

    def open(self) -> None:
        """Start connecting and watching, in the background: the replica may be unreachable."""
        self._database.open()
        self._watcher.start()

    def close(self) -> None:
        """Close the connections; the thread ends soon."""
        self._closing = True
        self._ask_now.set()
        self._database.close()

    def count(self) -> None:
        """Update the metrics of its pool, and whether it is in use."""
        self._database.count()
        metrics.count_replica(self._name, is_ready=self.is_ready)

    def read(self, work: Callable[[Connection], T], *, whose: Whose) -> T:
        """Do what `Database.read` does. After a failure it is unready until a check, started at once, succeeds."""
        try:
            return self._database.read(work, whose=whose)
        except OverloadedError:
            raise
        except UnavailableError:
            self._answers = False
            self._ask_now.set()
            raise

    def _watch(self) -> None:
        while not self._closing:
            self._ask_now.clear()
            try:
                self._ask()
            except ProblemError:
                pass  # The pool has logged why. Without a new mark, readiness expires.
            except psycopg.Error as error:
                if not self._closing:
                    log.warning("replica_not_checked", replica=self._name, error=type(error).__name__)
            if self.is_ready is not self._was_ready:
                self._was_ready = self.is_ready
                log.info("replica_in_use" if self._was_ready else "replica_left_out", replica=self._name)
            self._ask_now.wait(min(_CHECK_SECONDS, self._maximum_lag / _CHECKS_WITHIN_LAG))

    def _ask(self) -> None:
        now = monotonic()
        end = self._primary.read(server_state.get_flushed_wal)
        if end is not None:
            self._marks.append(_Mark(now, end))
        replayed = self._database.read(server_state.get_replayed_wal)
        self._answers = True
        # Too old a mark proves nothing; after a failover it may even be ahead of the new primary.
        while self._marks and self._marks[0].at < now - self._maximum_lag:
            self._marks.popleft()
        while self._marks and replayed is not None and self._marks[0].end <= replayed:
            self._as_of = self._marks.popleft().at


def name_of(url: str) -> str:
    """Return host and port of a connection string, without its user."""
    return ":".join(connection_strings.place_of(url).values())


def single_hosts(url: str | None) -> list[str]:
    """Return a connection string for each host that a libpq URI or key-value string names; an empty list for None."""
    return [] if url is None else list(connection_strings.single_hosts(url))

"""Knows which streaming replicas may answer in the primary's place, and lets the primary answer where none may.

How late a replica is follows from the write-ahead log alone: the primary is asked how far it has come, and the replica
is as late as the newest such mark that it has replayed is old. That needs no common clock and no traffic on the
primary, and a replica that is cut off from its primary gets later like one that is slow.
"""

import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from time import monotonic
from typing import Final, NamedTuple, TypeVar

import psycopg
import structlog

from cases_service.database import connection_strings, server_state
from cases_service.database.connection_pool import Connection, Database, Reader
from cases_service.errors import OverloadedError, ProblemError, UnavailableError
from cases_service.observability import metrics
from cases_service.settings import Settings

T = TypeVar("T")

_CHECK_SECONDS: Final = 1.0
_CHECKS_WITHIN_LAG: Final = 4

log = structlog.get_logger()


class Replicas(Reader):
    """Reads from the replicas that are not too late, in turn, and from the primary while there is none."""

    def __init__(self, primary: Database, settings: Settings) -> None:
        self._primary = primary
        self._replicas = [Replica(url, primary, settings) for url in single_hosts(settings.read_database_url)]
        self._turns = count()

    @property
    def are_configured(self) -> bool:
        """Whether there are any, ready or not."""
        return bool(self._replicas)

    def open(self) -> None:
        """Begin to connect and to watch, in the background."""
        for replica in self._replicas:
            replica.open()

    def close(self) -> None:
        """End the connections."""
        for replica in self._replicas:
            replica.close()

    def count(self) -> None:
        """Bring the metrics of the pools up to date."""
        for replica in self._replicas:
            replica.count()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` reads, which may be `CASES_READ_MAX_LAG` old; raises what `Database.read` does.

        What a replica does not answer (it is away, or its recovery stands in the way) is asked again of the primary.
        One that has too much to do is none of these: the primary would only be next.
        """
        ready = [replica for replica in self._replicas if replica.is_ready]
        if ready:
            try:
                return ready[next(self._turns) % len(ready)].read(work)
            except OverloadedError:
                raise
            except UnavailableError:
                pass
        return self._primary.read(work)


class _Mark(NamedTuple):
    """Where the primary's log ended at the earliest at a moment."""

    at: float
    end: int


class Replica:
    """One replica: its connections, and what it is known to have replayed. A thread asks once a second."""

    def __init__(self, url: str, primary: Database, settings: Settings) -> None:
        self._primary = primary
        self._name = name_of(url)
        self._database = Database(url, settings, name=self._name)
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
        """Whether it answers and has everything that was committed `CASES_READ_MAX_LAG` ago."""
        return self._answers and monotonic() - self._as_of <= self._maximum_lag

    def open(self) -> None:
        """Begin to connect and to watch, in the background: the replica may be away."""
        self._database.open()
        self._watcher.start()

    def close(self) -> None:
        """End the connections, and soon the thread."""
        self._closing = True
        self._ask_now.set()
        self._database.close()

    def count(self) -> None:
        """Bring the metrics of its pool up to date, and whether it is read from."""
        self._database.count()
        metrics.count_replica(self._name, is_ready=self.is_ready)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do what `Database.read` does. After a failure it is not ready until it has been asked again, at once."""
        try:
            return self._database.read(work)
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
                pass  # The pool has said why. What is not renewed expires.
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
        # A mark that is too old says nothing; after a failover it may even be ahead of the new primary.
        while self._marks and self._marks[0].at < now - self._maximum_lag:
            self._marks.popleft()
        while self._marks and replayed is not None and self._marks[0].end <= replayed:
            self._as_of = self._marks.popleft().at


def name_of(url: str) -> str:
    """Return where a connection string leads, without who enters."""
    return ":".join(connection_strings.place_of(url).values())


def single_hosts(url: str | None) -> list[str]:
    """Return a connection string for each host that a libpq URI or key-value string names; none for None."""
    return [] if url is None else list(connection_strings.single_hosts(url))

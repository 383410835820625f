"""A worker's connection pool: sets connections up, lends them for reads and writes, and replaces dead ones.

The liveness check is our own, since that of psycopg_pool (`check=`) waits a second before it tries a third connection.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from cases_service.database import session_settings
from cases_service.database.connection import Connection
from cases_service.database.fair_turns import THE_SERVICE, FairTurns, Whose
from cases_service.database.lost_connections import ConnectionLostError, hung_up, repeated, translated
from cases_service.database.node_call import CallingExchange
from cases_service.database.pipeline import Exchange, Query
from cases_service.database.primary import STANDBY
from cases_service.database.statements import statements
from cases_service.observability import metrics
from cases_service.problems import TimeoutProblemError, UnavailableError
from cases_service.settings import Settings

T = TypeVar("T")
U = TypeVar("U")

log = structlog.get_logger()

_SQL: Final = statements("session")
_AWAY_SECONDS: Final = 0.5
_RECONNECT_SECONDS: Final = 0.1
_MOMENT_SECONDS: Final = 0.001
_UNPREPARED_SECONDS: Final = 60.0
_CHECK_OF_SETTING: Final = "call_bool_check_hook"
_STANDBY_REFUSES: Final = "cannot set transaction read-write mode during recovery"


class Reader(ABC):
    """A database to read from, or several with the same data."""

    @abstractmethod
    def read(self, work: Callable[[Connection], T], *, whose: Whose = THE_SERVICE) -> T:
        """Return the result of `work` on a connection, in a turn of its owner's."""

    def ask(self, organization_id: UUID, query: Query[T], *, notes: bool = False) -> T:
        """Return the answer to a query about an organization; with `notes` it sees the internal notes, too."""
        answer: T = self.ask_all(organization_id, query, notes=notes)[0]
        return answer

    def ask_both(
        self, organization_id: UUID, first: Query[T], second: Query[U], *, visitor: str | None = None
    ) -> tuple[T, U]:
        """Return the answers to two queries about an organization, which see the same state of the database."""
        one, other = self.ask_all(organization_id, first, second, visitor=visitor)
        return one, other

    def ask_all(
        self, organization_id: UUID, *queries: Query[Any], visitor: str | None = None, notes: bool = False
    ) -> list[Any]:
        """Return the answers to queries about an organization, which all see the same state of the database.

        Where it is known for which visitor they are, they count as that one's.
        """
        whose = Whose(organization_id, visitor)
        return self.read(lambda connection: connection.ask(organization_id, *queries, notes=notes), whose=whose)


class Database(Reader):
    """The pool of one worker. Reads wait at most `pool_timeout` for their turn and as long again for a connection.

    A server in recovery is rejected, at every connection, unless it `may_follow` a primary: it may not know yet of a
    revocation.
    """

    def __init__(self, url: str, settings: Settings, *, name: str = "primary", may_follow: bool = False) -> None:
        self._name = name
        self._may_follow = may_follow
        self._wait = settings.pool_timeout
        self._answer_timeout = settings.answer_seconds
        self._away = False
        self._session = session_settings.of_service(settings)
        self._prepares_after = -inf if settings.prepared_statements else inf
        self._is_pooled = False
        # Waiting reads hold threads. At most half of them may be of one organization.
        waiting = max(0, settings.threads - settings.connections) // 2
        self._turns = FairTurns(settings.connections, waiting=waiting)
        self._parameters = session_settings.connection_parameters(url, settings)
        self._row_security_looked_at = threading.Lock()
        self._pool = ConnectionPool(
            self._parameters,
            connection_class=Connection,
            kwargs={"autocommit": True},
            configure=self._configure,
            min_size=settings.connections,
            timeout=self._wait,
            # The default backs off for minutes. With so short a time the pool gives up soon, and the next request makes
            # it retry. It is less than `_AWAY_SECONDS`, or the first request after an outage would wait in vain.
            reconnect_timeout=_RECONNECT_SECONDS,
            open=False,
            name=name,
        )

    def open(self) -> None:
        """Start connecting, in the background: the database may be unreachable."""
        self._pool.open()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def count(self) -> None:
        """Update the pool's metrics."""
        metrics.count_pool(self._name, self._pool.pop_stats())

    def read(self, work: Callable[[Connection], T], *, whose: Whose = THE_SERVICE, within: float | None = None) -> T:
        """Return the result of `work`. If a connection turns out dead, run it again on a fresh one.

        Args:
            work: Reads on a connection; it runs in one thread and may run more than once.
            whose: The owner that the turn counts for.
            within: The most seconds for all of it, if less than the time-outs allow.

        Raises:
            OverloadedError: No connection became free in time, or the share of turns is used up.
            UnavailableError: The database is unreachable.
            TimeoutProblemError: A statement took too long.

        """
        deadline = inf if within is None else monotonic() + within
        return repeated(
            lambda: self._attempt(work, whose, deadline),
            drain=self._pool.drain,
            give_up_prepared_statements=self._prepare_nothing_for_a_while,
        )

    def write(self, work: Callable[[Connection], object]) -> None:
        """Run `work`, which may write, on a connection of its own, so that no request waits for it.

        Raises:
            psycopg.Error: The database is unreachable or read-only, or the role may not write.

        """
        with Connection.connect(self._parameters, autocommit=True) as connection:
            self._configure(connection)
            connection.exchange.writes = True
            work(connection)

    def change(self, work: Callable[[Connection], T], *, whose: Whose = THE_SERVICE) -> T:
        """Return the result of `work`, which may write. It runs only once, even if the connection breaks.

        Raises:
            OverloadedError: No connection became free in time.
            UnavailableError: The database is unreachable, or takes no writes.
            TimeoutProblemError: A statement took too long, and nothing was written.

        """
        try:
            return self._attempt(work, whose, inf)
        except TimeoutProblemError:
            raise TimeoutProblemError("Nothing was changed. Try again.") from None
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported) as error:
            if not _takes_no_writes(error):
                raise
            log.warning("database_takes_no_writes", sqlstate=error.sqlstate)
            raise UnavailableError("The database takes no writes now. Nothing was changed.") from None
        except ConnectionLostError:
            self._pool.drain()
            raise UnavailableError from None

    def _configure(self, connection: Connection) -> None:
        """Set up a new connection, or reject it.

        It must lead to the primary, and a pooler in between must not have dropped the session's settings.
        """
        connection.answer_timeout = self._answer_timeout
        connection.prepare_threshold = self._prepare_threshold
        connection.adapters.register_loader("uuid", TextLoader)
        connection.adapters.register_loader("timestamptz", TextLoader)
        session_settings.complete(connection)
        is_citus, calls = self._check_server(connection)
        names = [*self._session, *session_settings.PINNED_WHERE_KNOWN]
        found = dict(connection.execute(_SQL["get_session"], {"names": names}, prepare=False).fetchall())
        if dropped := session_settings.dropped_settings(found, self._session):
            log.error("session_refused", settings=dropped, advice="see PgBouncer in docs/scaling.md")
            raise psycopg.OperationalError("the session is not what the statements rely on")
        connection.exchange = self._exchange(connection, is_citus=is_citus, calls=calls)
        # Only the first connection checks: the lock is never released.
        if self._row_security_looked_at.acquire(blocking=False):
            self._look_at_row_security(connection)

    def _exchange(self, connection: Connection, *, is_citus: bool, calls: bool) -> Exchange:
        prepares = self._prepare_threshold is not None
        kind = CallingExchange if is_citus and calls else Exchange
        return kind(connection, answer_timeout=self._answer_timeout, prepares=prepares, is_citus=is_citus)

    def _check_server(self, connection: Connection) -> tuple[bool, bool]:
        """Return whether the tables are Citus', and whether this role may call ask_organization() there."""
        row = connection.execute(_SQL["get_server"], prepare=False).fetchone()
        is_in_recovery, backend, is_citus, calls = row or (True, 0, False, False)
        if is_in_recovery and not self._may_follow:
            log.error("server_in_recovery", advice="see Fail-over in docs/operations.md")
            raise psycopg.OperationalError(f"the server {STANDBY}")
        self._is_pooled = backend != connection.info.backend_pid
        return bool(is_citus), bool(calls)

    @property
    def _prepare_threshold(self) -> int | None:
        return 0 if monotonic() >= self._prepares_after else None

    def _prepare_nothing_for_a_while(self) -> None:
        self._prepares_after = max(self._prepares_after, monotonic() + _UNPREPARED_SECONDS)
        advice = {"advice": "RECONNECT in PgBouncer's console"} if self._is_pooled else {}
        log.warning("prepared_statements_given_up", seconds=_UNPREPARED_SECONDS, **advice)

    def _look_at_row_security(self, connection: Connection) -> None:
        """Warn if only the statements themselves keep organizations apart."""
        row = connection.execute(_SQL["is_bound_by_row_security"], prepare=False).fetchone()
        if row == (False,):
            log.warning("row_security_bypassed", role=connection.info.user, advice="see Roles in docs/security.md")

    def _attempt(self, work: Callable[[Connection], T], whose: Whose, deadline: float) -> T:
        turn = self._turns.acquire(whose, timeout=min(self._wait, _left(deadline)))
        try:
            connection = self._checkout(deadline)
            try:
                return translated(work, connection)
            finally:
                self._pool.putconn(connection)
        finally:
            self._turns.release(turn)

    def _checkout(self, deadline: float) -> Connection:
        """Return a live connection that waits for answers only until the deadline."""
        # While the database is unreachable, every request would wait in vain and hold a thread.
        give_up_at = monotonic() + (_AWAY_SECONDS if self._away else self._wait)
        while True:
            try:
                connection = self._pool.getconn(timeout=_left(min(give_up_at, deadline)))
            except PoolTimeout:
                self._away = True
                raise UnavailableError from None
            except PoolClosed:
                raise UnavailableError("The service is about to stop.") from None
            self._away = False
            if not hung_up(connection):
                connection.prepare_threshold = self._prepare_threshold
                connection.exchange.prepares = connection.prepare_threshold is not None
                answer_timeout = min(self._answer_timeout, _left(deadline))
                connection.answer_timeout = connection.exchange.answer_timeout = answer_timeout
                return connection
            connection.close()
            self._pool.putconn(connection)


def _takes_no_writes(error: psycopg.Error) -> bool:
    """Tell whether the server is read-only, or a standby, to which a pooler or a node's address may lead.

    A standby refuses `begin … read write` as an invalid setting, with the code of an unsupported feature. Citus passes
    on only the code and the message of its node.
    """
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True
    return error.diag.source_function == _CHECK_OF_SETTING or error.diag.message_primary == _STANDBY_REFUSES


def _left(deadline: float) -> float:
    """Return the seconds left, at least a moment."""
    return max(deadline - monotonic(), _MOMENT_SECONDS)

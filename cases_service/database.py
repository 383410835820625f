"""Owns the connections of a worker: how they are set up, lent for a read, counted, and replaced when they are dead.

Whatever keeps a read from its answer becomes one of the errors of the interface here, and only here.
"""

import select
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg import conninfo
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool, PoolTimeout

from cases_service import instants
from cases_service.errors import OverloadedError, TimeoutProblemError, UnavailableError
from cases_service.settings import Settings

T = TypeVar("T")

log = structlog.get_logger()

# Every statement of a request is a few index look-ups in the order of the index. Held to that, a plan that is made
# once for all parameters is the right one, and neither stale statistics nor a guess at what a filter lets pass can
# turn it over. Where a sort cannot be avoided (a page is merged from its contacts) it is done all the same.
_SESSION: Final = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "default_transaction_read_only": "on",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}
# A peer that has vanished is noticed within seconds, instead of the minutes of TCP's defaults.
_LIVENESS: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}


class InstantLoader(Loader):
    """Reads a timestamptz as the text that the API shows."""

    def load(self, data: Buffer) -> str:
        """Return a time in the form of `schemas.Instant`."""
        return instants.from_postgres(bytes(data).decode("ascii"))


class QueryCount(threading.local):
    """How many statements this thread has sent since `value` was last set to 0."""

    value = 0


query_count: Final = QueryCount()


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that counts its statements."""

    def execute(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Do what psycopg's does, and count."""
        query_count.value += 1
        return super().execute(*args, **kwargs)


class Database:
    """The pool of one worker. Reads wait at most `pool_timeout` for their turn and as long again for a connection."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._wait = settings.pool_timeout
        self._turns = threading.BoundedSemaphore(settings.connections)
        self._pool = ConnectionPool(
            connection_parameters(url, settings),
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": 0},
            configure=_configure,
            min_size=settings.connections,
            timeout=self._wait,
            # The default backs off for minutes; so short a limit makes the next waiting request try anew.
            reconnect_timeout=1.0,
            open=False,
            name="cases",
        )

    def open(self) -> None:
        """Begin to connect, in the background: the database may be away."""
        self._pool.open()

    def close(self) -> None:
        """End the connections."""
        self._pool.close()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` reads. It may be run twice: where a connection turns out dead, on a fresh one.

        Raises:
            OverloadedError: All connections are in use and none became free in time.
            UnavailableError: The database is away.
            TimeoutProblemError: A statement took too long.

        """
        try:
            return self._attempt(work)
        except _ConnectionLostError:
            # Its neighbours have most likely died with it.
            self._pool.drain()
        try:
            return self._attempt(work)
        except _ConnectionLostError:
            raise UnavailableError from None

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        if not self._turns.acquire(timeout=self._wait):
            raise OverloadedError
        try:
            connection = self._checkout()
            try:
                return _translated(work, connection)
            finally:
                self._pool.putconn(connection)
        finally:
            self._turns.release()

    def _checkout(self) -> Connection:
        deadline = monotonic() + self._wait
        while True:
            try:
                connection = self._pool.getconn(timeout=max(deadline - monotonic(), 0.001))
            except PoolTimeout:
                raise UnavailableError from None
            if not _hung_up(connection):
                return connection
            connection.close()
            self._pool.putconn(connection)


class _ConnectionLostError(Exception):
    """The connection died, or its prepared statements are older than the schema."""


def connection_parameters(url: str, settings: Settings) -> str:
    """Return the connection string of the service: what the URL says, and the session that the statements rely on."""
    given = conninfo.conninfo_to_dict(url)
    session = {**_SESSION, "statement_timeout": f"{settings.statement_timeout * 1000:.0f}"}
    options = " ".join(f"-c {name}={value}" for name, value in session.items())
    defaults = {"application_name": "cases-service", "connect_timeout": str(settings.connect_timeout), **_LIVENESS}
    parameters: dict[str, Any] = {**defaults, **given, "options": f"{given.get('options') or ''} {options}".strip()}
    return conninfo.make_conninfo("", **parameters)


def _configure(connection: psycopg.Connection[Any]) -> None:
    connection.adapters.register_loader("uuid", TextLoader)
    connection.adapters.register_loader("timestamptz", InstantLoader)


def _hung_up(connection: Connection) -> bool:
    """Return whether the server has closed an idle connection. Costs a system call, no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


def _translated(work: Callable[[Connection], T], connection: Connection) -> T:
    try:
        return work(connection)
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        raise TimeoutProblemError from None
    except psycopg.errors.FeatureNotSupported:
        # "cached plan must not change result type": a migration replaced what a prepared statement reads.
        connection.close()
        raise _ConnectionLostError from None
    except _NO_SCHEMA as error:
        log.error("schema_missing", sqlstate=error.sqlstate, advice="run cases-service init-db")
        raise UnavailableError from None
    except psycopg.OperationalError as error:
        log.warning("database_error", error=type(error).__name__, sqlstate=error.sqlstate)
        if connection.closed:
            raise _ConnectionLostError from None
        raise UnavailableError from None


_NO_SCHEMA: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
)

"""What to do about a connection that is lost: how it is noticed, what its failure means, and the retry of a read."""

import select
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from cases_service.database.connection import Connection
from cases_service.errors import TimeoutProblemError, UnavailableError

T = TypeVar("T")

log = structlog.get_logger()

_ATTEMPTS: Final = 3


class ConnectionLostError(Exception):
    """The connection died."""


class StatementOutdatedError(ConnectionLostError):
    """The connection was given up, because its prepared statements are older than the schema."""


def repeated(
    attempt: Callable[[], T], *, drain: Callable[[], object], give_up_prepared_statements: Callable[[], object]
) -> T:
    """Return the result of an attempt to read. If its connection is lost, try again on a fresh one.

    Args:
        attempt: Reads on a connection of the pool.
        drain: Replaces all connections: the others are most likely dead too, or have prepared the same statements.
        give_up_prepared_statements: Called if they are outdated on a fresh connection, too.

    Raises:
        UnavailableError: The connections of all attempts were lost.

    """
    for number in range(_ATTEMPTS):
        try:
            return attempt()
        except StatementOutdatedError:
            if number > 0:
                # A pooler keeps its prepared statements, or the schema changed once more.
                give_up_prepared_statements()
        except ConnectionLostError:
            if number > 0:
                break
        drain()
    raise UnavailableError from None


def hung_up(connection: Connection) -> bool:
    """Tell whether the server has closed an idle connection. Costs a system call, but no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


def translated(work: Callable[[Connection], T], connection: Connection) -> T:
    """Return the result of `work`, and raise what the database's failures mean for a request.

    Raises:
        ConnectionLostError: The connection died.
        StatementOutdatedError: Its prepared statements are older than the schema.
        UnavailableError: The database cannot be used.
        TimeoutProblemError: A statement took too long.

    """
    try:
        return work(connection)
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        raise TimeoutProblemError from None
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName) as error:
        # "cached plan must not change result type": a migration changed a table that a prepared statement reads.
        # "prepared statement … does not exist": a pooler has switched the connection to another server.
        if isinstance(error, psycopg.errors.FeatureNotSupported) and error.diag.source_function != _REVALIDATION:
            raise
        connection.close()
        raise StatementOutdatedError from None
    except _NOT_SET_UP as error:
        log.error("database_not_set_up", sqlstate=error.sqlstate, advice="run cases-service init-db")
        raise UnavailableError from None
    except psycopg.OperationalError as error:
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            log.error("database_does_not_answer")
            connection.close()
            raise UnavailableError from None
        log.warning("database_error", error=type(error).__name__, sqlstate=error.sqlstate)
        if connection.closed:
            raise ConnectionLostError from None
        raise UnavailableError from None


_REVALIDATION: Final = "RevalidateCachedQuery"
_NOT_SET_UP: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)

"""A command's connection, which sees every organization on the nodes of Citus, too.

Row security reads a setting that says so. The connection asks for it at its start, and no server hands that on to
another. What Citus does hand on to its nodes is SET LOCAL, if it is told to: so every transaction begins with that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from cases_service.database.statements import statements

_SQL: Final = statements("session")


def is_citus(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a database is one of Citus, which passes statements on to other servers."""
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    row = cursor.execute(_SQL["is_citus"], prepare=False).fetchone()
    return row is not None and bool(row[0])


def see_every_organization(connection: psycopg.Connection[Any]) -> None:
    """See the rows of every organization up to the end of the transaction, on the nodes of Citus, too."""
    for name in ("hand_settings_on", "see_every_organization"):
        connection.execute(_SQL[name], prepare=False)


def limit_waiting_on_nodes(connection: psycopg.Connection[Any], milliseconds: int) -> None:
    """Let nodes of Citus wait so long for a row at the most, up to the end of the transaction."""
    limit = sql.SQL("set local lock_timeout = {}").format(sql.Literal(milliseconds))
    connection.execute(_SQL["hand_settings_on"], prepare=False)
    connection.execute(limit, prepare=False)


class CommandConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection in autocommit mode. On Citus a statement outside of a transaction is one by itself."""

    is_on_citus = False
    """Whether the tables are Citus'."""

    def look_at_server(self) -> None:
        """See whether this is Citus, once at the start."""
        self.is_on_citus = is_citus(self)

    @contextmanager
    def transaction(
        self,
        savepoint_name: str | None = None,
        force_rollback: bool = False,  # noqa: FBT001, FBT002  as psycopg has it
    ) -> Iterator[psycopg.Transaction]:
        """Do what psycopg's does, and see every organization on the nodes."""
        is_first = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if is_first and self.is_on_citus:
                see_every_organization(self)
            yield transaction

    def execute(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Do what psycopg's does, in a transaction."""
        if not self.is_on_citus or self.info.transaction_status != TransactionStatus.IDLE:
            return super().execute(*args, **kwargs)
        with self.transaction():
            return super().execute(*args, **kwargs)

"""Runs the statements of one load by their names, on one connection and inside its transaction."""

import sys
from collections import Counter
from contextlib import AbstractContextManager
from math import inf
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from cases_service.database.command_connection import is_citus
from cases_service.loading.statements import STATEMENTS, STATEMENTS_ON_CITUS

SQL: Final = {name: text.encode() for name, text in STATEMENTS.items()}
_SQL_ON_CITUS: Final = {name: text.encode() for name, text in STATEMENTS_ON_CITUS.items()}


class LoadSession:
    """A load's access to the database. Statements are named as `make load-statements` prints them.

    Args:
        connection: Its transaction has just begun.
        deadline: When the load must have ended, by `monotonic`.

    Attributes:
        organizations_of_wrong: The organizations of the lines that were excluded, by place.

    """

    def __init__(self, connection: psycopg.Connection[Any], *, deadline: float = inf) -> None:
        self.connection = connection
        self.is_on_citus = False
        self.deadline = deadline
        self.organizations_of_wrong: dict[int, str] = {}
        self._sql = SQL
        self.execute("begin")
        if is_citus(connection):
            self.is_on_citus = True
            self._sql = _SQL_ON_CITUS

    def execute(self, statement: str, **parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run a statement.

        Raises:
            psycopg.errors.QueryCanceled: The deadline has passed, as if this statement took too long.

        """
        if monotonic() > self.deadline:
            raise psycopg.errors.QueryCanceled
        # Each runs once, and several statements in one text cannot be prepared.
        cursor = self.connection.cursor(row_factory=tuple_row)
        return cursor.execute(self._sql[statement], parameters or None, prepare=False)

    def list_places(self, statement: str, **parameters: Any) -> list[int]:
        """Return the places of the lines that a statement returns, each in a row of its own."""
        return [place for (place,) in self.execute(statement, **parameters).fetchall()]

    def exclude(self, statement: str, **parameters: Any) -> list[int]:
        """Exclude the lines that a statement returns with their organizations, and return their places."""
        excluded = self.execute(statement, **parameters).fetchall()
        self.organizations_of_wrong.update((place, sys.intern(organization)) for place, organization in excluded)
        return [place for place, _ in excluded]

    def find_place(self, statement: str, **parameters: Any) -> int | None:
        """Return the place of the line that a statement finds."""
        found = self.execute(statement, **parameters).fetchone()
        return None if found is None else int(found[0])

    def count(self, statement: str) -> Counter[str]:
        """Return how many rows or lines a statement wrote, removed or skipped, by organization."""
        return Counter(dict(self.execute(statement).fetchall()))

    def rows(self, statement: str, **parameters: Any) -> psycopg.ServerCursor[tuple[Any, ...]]:
        """Return the rows of a statement from a server-side cursor, so that they need not fit into memory."""
        cursor = self.connection.cursor(statement, row_factory=tuple_row)
        return cursor.execute(self._sql[statement], parameters or None)

    def copy(self, statement: str) -> AbstractContextManager[psycopg.Copy]:
        """Return what takes the rows of a copy."""
        return self.connection.cursor().copy(SQL[statement])

    def savepoint(self) -> AbstractContextManager[psycopg.Transaction]:
        """Return a savepoint, to which an exception rolls back."""
        return self.connection.transaction()

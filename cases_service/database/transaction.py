"""A transaction that writes: of one round trip or two, and what it means if the connection dies before its end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from cases_service.database.connection import Connection
from cases_service.database.pipeline import Query
from cases_service.errors import OutcomeUnknownError


class Transaction:
    """A transaction that writes, of one round trip or two; what is left open at its end is rolled back."""

    def __init__(self, connection: Connection, organization_id: UUID, *, notes: bool = False) -> None:
        self._connection = connection
        self._organization_id = organization_id
        self._notes = notes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection.info.transaction_status == TransactionStatus.INTRANS:
            self._connection.end(b"rollback")

    def begin(self, *queries: Query[Any]) -> Sequence[Any]:
        """Return the answers to queries in a new transaction."""
        return self._connection.begin(self._organization_id, *queries, notes=self._notes)

    def commit(self, *queries: Query[Any]) -> Sequence[Any]:
        """Return the answers to queries, once the server has committed."""
        with self._committing():
            return self._connection.end(b"commit", *queries)

    def write(self, *queries: Query[Any]) -> Sequence[Any]:
        """Return the answers to queries in a transaction of their own, once the server has committed it."""
        with self._committing():
            return self._connection.write(self._organization_id, *queries)

    @contextmanager
    def _committing(self) -> Iterator[None]:
        try:
            yield
        except psycopg.OperationalError:
            is_open = self._connection.info.transaction_status == TransactionStatus.ACTIVE
            if not self._connection.closed and not is_open:
                raise
            self._connection.close()
            raise OutcomeUnknownError from None
        except psycopg.errors.InternalError_:
            # Of Citus, where a node has not answered the commit.
            raise OutcomeUnknownError from None

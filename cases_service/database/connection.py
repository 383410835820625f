"""A connection to the database: it counts its statements, and gives up a server that stops answering."""

import threading
from time import perf_counter
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg.abc import PQGen

from cases_service.database.pipeline import Exchange, Query

T = TypeVar("T")

_POLL_SECONDS: Final = 0.1


class QueryCount(threading.local):
    """How many statements this thread has sent since `value` was set to 0, and how long it waited for them."""

    value = 0
    seconds = 0.0

    def add(self, statements: int, started: float) -> None:
        """Count statements sent at a `perf_counter()` time and answered, or given up, now."""
        self.value += statements
        self.seconds += perf_counter() - started


query_count: Final = QueryCount()


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that counts its statements, and does not wait for ever for a server that stops answering."""

    exchange: Exchange
    answer_timeout: float | None = None
    """How long an answer may take, in seconds. A live server's own time-out comes first."""

    def wait(self, gen: PQGen[T], interval: float = _POLL_SECONDS, timeout: float | None = None) -> T:
        """Do what psycopg's does, but raise OperationalError if the server stops answering."""
        return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)

    def execute(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        """Do what psycopg's does, and count."""
        started = perf_counter()
        try:
            return super().execute(*args, **kwargs)
        finally:
            query_count.add(1, started)

    def ask(self, organization_id: UUID, *queries: Query[Any], notes: bool = False) -> list[Any]:
        """Return the answers to queries about an organization, in one round trip and one transaction."""
        started = perf_counter()
        try:
            return self.exchange.ask(organization_id, queries, notes=notes)
        finally:
            query_count.add(len(queries), started)

    def begin(self, organization_id: UUID, *queries: Query[Any], notes: bool = False) -> list[Any]:
        """Do what `ask` does, in a transaction that may write and is left open."""
        started = perf_counter()
        try:
            return self.exchange.begin(organization_id, queries, notes=notes)
        finally:
            query_count.add(len(queries), started)

    def write(self, organization_id: UUID, *queries: Query[Any]) -> list[Any]:
        """Do what `ask` does, in a transaction that may write and is committed."""
        started = perf_counter()
        try:
            return self.exchange.write(organization_id, queries)
        finally:
            query_count.add(len(queries), started)

    def end(self, command: bytes, *queries: Query[Any]) -> list[Any]:
        """Return the answers to queries in the open transaction, and end it by a command, in one round trip."""
        started = perf_counter()
        try:
            return self.exchange.step(queries, end=(command,))
        finally:
            query_count.add(len(queries), started)

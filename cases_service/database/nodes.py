"""Reads from the nodes of Citus that have the rows, over connections of the service's own (CASES_CITUS_NODES).

A statement asks the shard's own tables, and so is what it is on a PostgreSQL without Citus. The coordinator is asked
where an organization's shard is, and that is remembered. Each transaction looks in the metadata of its node whether the
shard is there, in the state of the database that its other statements see. If it is not, or the node does not answer,
the coordinator is asked. So a place that is remembered saves a way, and decides nothing.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.fair_turns import Whose
from cases_service.database.node_call import TABLES, CallingExchange, with_tables
from cases_service.database.pipeline import Exchange, Query, Result
from cases_service.database.statements import Statement, numbered, statements
from cases_service.problems import OverloadedError, UnavailableError
from cases_service.settings import Settings

_SQL: Final = statements("session")
_LOOKING: Final = numbered("session")["has_shard"]
_REMEMBERED_SECONDS: Final = 60.0
_LEFT_OUT_SECONDS: Final = 5.0
_MAXIMUM_REMEMBERED: Final = 10_000

log = structlog.get_logger()


class Place(NamedTuple):
    """Where a node is, by the coordinator."""

    host: str
    port: int


class Shard(NamedTuple):
    """An organization's shard: where it is, its number, and its tables in the order of `TABLES`."""

    place: Place
    number: int
    tables: tuple[str, ...]


class DatabaseOfNodes(Database):
    """The coordinator's pool, and one for each node, opened when the first request wants it.

    Only `ask_all`, and what is made of it, asks nodes. Everything else goes to the coordinator.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        super().__init__(url, settings)
        self._url = url
        self._settings = settings
        self._nodes: dict[Place, Database] = {}
        self._shards: dict[UUID, tuple[float, Shard | None]] = {}
        self._left_out: dict[Place, float] = {}
        self._changing = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close the connections."""
        with self._changing:
            self._is_closed = True
            nodes = list(self._nodes.values())
        for node in nodes:
            node.close()
        super().close()

    def count(self) -> None:
        """Update the metrics of all pools."""
        super().count()
        for node in list(self._nodes.values()):
            node.count()

    def ask_all(
        self, organization_id: UUID, *queries: Query[Any], visitor: str | None = None, notes: bool = False
    ) -> list[Any]:
        """Do what the reader does, on the organization's node if that answers."""
        shard = self._shard_of(organization_id)
        node = None if shard is None else self._node_at(shard.place)
        if shard is not None and node is not None:
            asked = [_on_shard(query, shard) for query in queries]
            looking = Query(_LOOKING, {"shard": shard.number}, _is_there)
            whose = Whose(organization_id, visitor)
            try:
                answers = node.read(lambda c: _answers(c, organization_id, [*asked, looking], notes=notes), whose=whose)
            except OverloadedError:
                raise
            except UnavailableError as error:
                self._leave_out(shard.place, error)
            else:
                if answers is not None:
                    return answers
                self._shards.pop(organization_id, None)
        return super().ask_all(organization_id, *queries, visitor=visitor, notes=notes)

    def _shard_of(self, organization_id: UUID) -> Shard | None:
        """Return where an organization was a while ago; None on a server without nodes."""
        now = monotonic()
        until, shard = self._shards.get(organization_id, (0.0, None))
        if now < until:
            return shard
        if len(self._shards) >= _MAXIMUM_REMEMBERED:
            self._shards.clear()
        shard = self.read(lambda connection: _find(connection, organization_id))
        self._shards[organization_id] = now + _REMEMBERED_SECONDS, shard
        return shard

    def _node_at(self, place: Place) -> Database | None:
        """Return a node's pool, which is opened if need be; None while the node is left out."""
        if monotonic() < self._left_out.get(place, 0.0):
            return None
        node = self._nodes.get(place)
        if node is None:
            with self._changing:
                if self._is_closed:
                    return None
                if place not in self._nodes:
                    self._nodes[place] = _Node(self._url_at(place), self._settings, name=_name_of(place))
                    self._nodes[place].open()
                node = self._nodes[place]
        return node

    def _leave_out(self, place: Place, error: Exception) -> None:
        """Ask the coordinator for a while, and where everything is."""
        log.warning("node_left_out", node=_name_of(place), error=type(error).__name__)
        self._left_out[place] = monotonic() + _LEFT_OUT_SECONDS
        self._shards.clear()

    def _url_at(self, place: Place) -> str:
        return make_conninfo(self._url, host=place.host, hostaddr="", port=place.port)


class _Node(Database):
    """The pool of a node, which is asked as a server that knows nothing of other servers."""

    def _exchange(self, connection: Connection, *, is_citus: bool, calls: bool) -> Exchange:
        return super()._exchange(connection, is_citus=False, calls=False)


def _find(connection: Connection, organization_id: UUID) -> Shard | None:
    if not isinstance(connection.exchange, CallingExchange):
        return None
    given = {"organization_id": organization_id, "tables": list(TABLES)}
    row = connection.execute(_SQL["find_shard"], given).fetchone()
    if row is None:
        return None
    host, port, number, tables = row
    return Shard(Place(host, port), number, tuple(tables))


def _on_shard(query: Query[Any], shard: Shard) -> Query[Any]:
    """Return a query for the tables of a shard."""
    return Query(_statement(query.statement, shard.tables), query.parameters, query.read)


@lru_cache(maxsize=4096)
def _statement(statement: Statement, tables: tuple[str, ...]) -> Statement:
    text = with_tables(statement.text.decode(), dict(zip(TABLES, tables, strict=True))).encode()
    return Statement(blake2b(text, digest_size=16).hexdigest().encode(), text, statement.parameters)


def _answers(
    connection: Connection, organization_id: UUID, queries: Sequence[Query[Any]], *, notes: bool
) -> list[Any] | None:
    """Return the answers to all queries but the last, which says whether the shard is there; None if it is not."""
    try:
        *answers, is_there = connection.ask(organization_id, *queries, notes=notes)
    except psycopg.errors.UndefinedTable:
        return None
    return answers if is_there else None


def _is_there(result: Result) -> bool:
    return bool(result.rows[0][0])


def _name_of(place: Place) -> str:
    return f"{place.host}:{place.port}"

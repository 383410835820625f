"""Reads from the nodes of Citus that have the rows, over connections of the service's own (CASES_CITUS_NODES).

The coordinator is asked where an organization is, and that is remembered for seconds, to save the way there and nothing
else. A node that is called about an organization whose shard it does not have passes the call on, as the coordinator
would; and the node that answers looks whether it still has the shard (deploy/citus.sql). So no answer depends on what
is remembered here. If a node fails, the coordinator is asked.
"""

import threading
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import structlog
from psycopg.conninfo import make_conninfo

from cases_service.database.connection_pool import Database
from cases_service.database.node_call import CallingExchange
from cases_service.database.pipeline import Query
from cases_service.database.statements import statements
from cases_service.problems import OverloadedError, UnavailableError
from cases_service.settings import Settings

_SQL: Final = statements("session")
_REMEMBERED_SECONDS: Final = 10.0
_LEFT_OUT_SECONDS: Final = 5.0
_MAXIMUM_REMEMBERED: Final = 10_000

log = structlog.get_logger()


class Place(NamedTuple):
    """Where a node is, by the coordinator."""

    host: str
    port: int


class DatabaseOfNodes(Database):
    """The coordinator's pool, and one for each node, opened when the first request wants it.

    Only `ask_all`, and what is made of it, asks nodes. Everything else goes to the coordinator.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        super().__init__(url, settings)
        self._url = url
        self._settings = settings
        self._nodes: dict[Place, Database] = {}
        self._places: dict[UUID, tuple[float, Place | None]] = {}
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
        place = self._place_of(organization_id)
        node = None if place is None else self._node_at(place)
        if place is not None and node is not None:
            try:
                return node.ask_all(organization_id, *queries, visitor=visitor, notes=notes)
            except OverloadedError:
                raise
            except (UnavailableError, psycopg.Error) as error:
                self._leave_out(place, error)
        return super().ask_all(organization_id, *queries, visitor=visitor, notes=notes)

    def _place_of(self, organization_id: UUID) -> Place | None:
        """Return where an organization was seconds ago; None on a server without nodes."""
        now = monotonic()
        until, place = self._places.get(organization_id, (0.0, None))
        if now < until:
            return place
        if len(self._places) >= _MAXIMUM_REMEMBERED:
            self._places.clear()
        place = self.read(lambda connection: _find_node(connection, organization_id))
        self._places[organization_id] = now + _REMEMBERED_SECONDS, place
        return place

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
                    self._nodes[place] = Database(self._url_at(place), self._settings, name=_name_of(place))
                    self._nodes[place].open()
                node = self._nodes[place]
        return node

    def _leave_out(self, place: Place, error: Exception) -> None:
        """Ask the coordinator for a while, and where everything is."""
        log.warning("node_left_out", node=_name_of(place), error=type(error).__name__)
        self._left_out[place] = monotonic() + _LEFT_OUT_SECONDS
        self._places.clear()

    def _url_at(self, place: Place) -> str:
        return make_conninfo(self._url, host=place.host, hostaddr="", port=place.port)


def _find_node(connection: Any, organization_id: UUID) -> Place | None:
    if not isinstance(connection.exchange, CallingExchange):
        return None
    row = connection.execute(_SQL["find_node"], {"organization_id": organization_id}).fetchone()
    return None if row is None else Place(*row)


def _name_of(place: Place) -> str:
    return f"{place.host}:{place.port}"

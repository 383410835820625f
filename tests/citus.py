"""A Citus cluster for the tests: one of their own, or the one of a coordinator's URL, with a database in it for each.

`CASES_TEST_CITUS=start` starts a coordinator and two workers from the Debian packages' PostgreSQL that has Citus;
a URL names the coordinator of one that runs, as a superuser, whose database knows the workers.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.embedded import supervisor
from cases_service.embedded.server import EmbeddedServer, join

VARIABLE: Final = "CASES_TEST_CITUS"
IS_USED: Final = os.environ.get(VARIABLE, "") != ""
SKIP_REASON: Final = f"Citus is in no package: {VARIABLE} says where it is (CONTRIBUTING.md)"
SCRIPT: Final = Path(__file__).parents[1] / "deploy/citus.sql"
SHARDS: Final = 4
"""Enough to lie on both workers. Each costs every table and index once more, in each worker of pytest."""

WAITING_ON_NODES: Final = (
    "select count(distinct waiting_gpid) from citus_lock_waits where blocking_gpid = citus_backend_gpid()"
)
"""How many sessions wait for what this one holds on nodes: the coordinator's own locks do not show that."""

WAITING: Final = "select 1 from citus_lock_waits"
"""A row for each session that waits for another one, on whatever node."""

_TRIES: Final = 20
_SETTINGS: Final = {
    "shared_preload_libraries": "citus",
    "wal_level": "logical",  # what a shard moves by
    "max_connections": "300",
    "max_prepared_transactions": "300",
    "max_worker_processes": "64",
    "max_locks_per_transaction": "512",
    "citus.node_conninfo": "sslmode=prefer",
    "citus.defer_shard_delete_interval": "-1",
    # Speed over safety: nothing in these servers is worth keeping.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "1h",
}


class Node(NamedTuple):
    """A worker, as the coordinator calls it."""

    name: str
    port: int

    def url(self, coordinator: str) -> str:
        """The same database and role there as in a coordinator's URL."""
        return make_conninfo(coordinator, host=self.name, port=self.port)


def find_programs() -> Path:
    """Return the directory of a PostgreSQL's programs that has Citus."""
    libraries = sorted(Path("/usr/lib/postgresql").glob("*/lib/citus.so"))
    assert libraries, "no PostgreSQL below /usr/lib/postgresql has Citus: see CONTRIBUTING.md"
    return libraries[-1].parents[1] / "bin"


@dataclass
class Server:
    """A node of the tests' own cluster, which can be stopped and started again."""

    data_dir: Path
    _server: EmbeddedServer | None = field(default=None, init=False)

    def start(self) -> str:
        """Start it, unless it runs, and return what reaches it."""
        if self._server is not None:
            return self._server.conninfo
        local = {"citus.local_hostname": str(self.data_dir / supervisor.SOCKET)}
        self._server = join(self.data_dir, bin_dir=find_programs(), settings={**_SETTINGS, **local})
        return self._server.conninfo

    def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.leave()
            assert server.wait_stopped(30)


class Cluster(NamedTuple):
    """A coordinator and its workers, in this order."""

    url: str
    servers: list[Server]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a coordinator and two workers, and stop them in the end."""
    place = Path(mkdtemp(prefix="cases-citus-", dir="/tmp"))
    place.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        servers = [Server(place / name) for name in ("coordinator", "worker1", "worker2")]
        for server in servers:
            stack.callback(server.stop)
            url = server.start()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("create extension citus")
        nodes = [Node(str(s.data_dir / supervisor.SOCKET), supervisor.PORT) for s in servers]
        url = make_conninfo(
            host=nodes[0].name, port=nodes[0].port, user=supervisor.SUPERUSER, dbname=supervisor.DATABASE
        )
        _introduce(url, *nodes)
        yield Cluster(url, servers)


def _introduce(url: str, coordinator: Node, *workers: Node) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select citus_set_coordinator_host(%s, %s)", coordinator)
        for worker in workers:
            for _ in range(_TRIES):
                # It writes all roles anew on the worker, as another process may do at the same moment.
                with suppress(psycopg.errors.InternalError_):
                    connection.execute("select citus_add_node(%s, %s)", worker)
                    break
        assert connection.execute("select count(*) from pg_dist_node").fetchone() == (1 + len(workers),)


def nodes_of(url: str) -> tuple[Node, list[Node]]:
    """Return the coordinator and the workers that a database knows."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("select groupid, nodename, nodeport from pg_dist_node order by nodeid").fetchall()
    nodes = [(group, Node(name, port)) for group, name, port in rows]
    (coordinator,) = (node for group, node in nodes if group == 0)
    return coordinator, [node for group, node in nodes if group != 0]


@contextmanager
def database(server_url: str, name: str, *, is_made: bool = False) -> Iterator[str]:
    """Make a database on every node of a cluster, which know each other in it, and drop it in the end.

    One that is made is there already, on the coordinator.
    """
    coordinator, workers = nodes_of(server_url)
    urls = [server_url, *(worker.url(server_url) for worker in workers)]
    named = [make_conninfo(url, dbname=name) for url in urls]
    try:
        for url, new in zip(urls, named, strict=True):
            with psycopg.connect(url, autocommit=True) as server:
                create = "create database {} template template0 encoding 'UTF8' locale 'C'"
                if not is_made or url != server_url:
                    server.execute(sql.SQL(create).format(sql.Identifier(name)))
            with psycopg.connect(new, autocommit=True) as connection:
                connection.execute("create extension citus")
        _introduce(named[0], coordinator, *workers)
        yield named[0]
    finally:
        for url in urls:
            with psycopg.connect(url, autocommit=True) as server:
                server.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def distribute(url: str) -> None:
    """Run deploy/citus.sql, with fewer shards."""
    script = SCRIPT.read_text().replace("shard_count => 32", f"shard_count => {SHARDS}")
    with psycopg.connect(url) as connection:
        connection.execute(script.encode())

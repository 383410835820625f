"""All metrics: of requests, of the database and of workers, and their exposition for Prometheus.

Every label has few values, all the service's own: route templates, known methods, statuses, codes, pools. Under
gunicorn the workers count in shared files (`metrics_files`), and the worker that answers a scrape adds them up.
"""

import platform
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from time import sleep
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from cases_service import __version__
from cases_service.observability import metrics_files
from cases_service.problems import VisitorTokenError

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_TRIES: Final = 20
_PAUSE_SECONDS: Final = 0.01
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _value_class(shared: Path | None) -> Any:
    """Return the class of prometheus_client's values: in this process, or in a file of its slot."""
    if shared is None:
        return values.MutexValue
    slot = metrics_files.take_slot(shared)
    return values.MultiProcessValue(lambda: slot)


values.ValueClass = _value_class(metrics_files.directory())

registry: Final = CollectorRegistry()
_counter: Final = partial(Counter, registry=registry)
_histogram: Final = partial(Histogram, registry=registry, buckets=_SECONDS)
_gauge: Final = partial(Gauge, registry=registry, multiprocess_mode="livesum")

_requests: Final = _counter(
    "cases_requests",
    "Requests answered; code is empty where there was no error.",
    ["route", "method", "status", "code"],
)
_duration: Final = _histogram("cases_request_duration_seconds", "How long a request took.", ["route"])
_database_time: Final = _histogram(
    "cases_request_database_seconds", "How long a request that asked the database waited for answers.", ["route"]
)
_queries: Final = _counter("cases_queries", "Statements that requests sent to the database.", ["route"])
_jwt_refusals: Final = _counter("cases_jwt_refusals", "Visitors' JWTs that were refused.", ["code"])
turn_wait: Final = _histogram(
    "cases_pool_wait_seconds", "How long reads waited for their turn; those that had it at once are not counted."
)
_refused_turns: Final = _counter(
    "cases_pool_shares_exceeded",
    "Reads that were refused at once, as an organization, or one visitor of it, had its share of the turns.",
    ["share"],
)
_pool_connections: Final = _gauge("cases_pool_connections", "Database connections that are open.", ["pool"])
_pool_in_use: Final = _gauge("cases_pool_connections_in_use", "Database connections that are lent to a read.", ["pool"])
_pool_maximum: Final = _gauge("cases_pool_connections_max", "Database connections at the most.", ["pool"])
_pool_attempts: Final = _counter("cases_pool_connection_attempts", "Attempts to connect to the database.", ["pool"])
_pool_failures: Final = _counter("cases_pool_connection_failures", "Attempts to connect that failed.", ["pool"])
_pool_broken: Final = _counter("cases_pool_connections_broken", "Connections that were lost or given up.", ["pool"])
_pool_queued: Final = _counter("cases_pool_queued", "Reads that had their turn and waited for a connection.", ["pool"])
_replica_workers: Final = _gauge("cases_replica_workers", "Worker processes that read from the replica.", ["pool"])
_import_lines: Final = _counter(
    "cases_import_lines", "Lines of imports: stored, no newer than what was stored already, and wrong.", ["outcome"]
)
_late_feeds: Final = Gauge(
    "cases_feeds_late",
    "Organizations whose loads and imports came regularly, and do not any more; looked at once a minute.",
    registry=registry,
    multiprocess_mode="livemostrecent",
)
_workers: Final = _gauge("cases_workers", "Worker processes that serve.")
_build: Final = Gauge(
    "cases_build_info",
    "1, for the release and the Python that run.",
    ["version", "python"],
    registry=registry,
    multiprocess_mode="livemax",
)

_JWT_CODES: Final = frozenset(kind.code for kind in VisitorTokenError.__subclasses__())


class Queries(Protocol):
    """A request's number of statements, and how long it waited for them."""

    value: int
    seconds: float


class _RouteCells(NamedTuple):
    """The metrics of one route, cached: looking them up costs more than counting."""

    duration: Callable[[float], None]
    database_time: Callable[[float], None]
    queries: Callable[[float], None]


@cache
def _route_cells(route: str) -> _RouteCells:
    return _RouteCells(
        _duration.labels(route).observe, _database_time.labels(route).observe, _queries.labels(route).inc
    )


@cache
def _request_cell(route: str, method: str, status: int, code: str) -> Callable[[], None]:
    return _requests.labels(route, method, status, code).inc


def start() -> None:
    """Count this process as a worker until it ends."""
    _workers.set(1)
    for share in ("organization", "visitor"):
        _refused_turns.labels(share)
    for outcome in ("stored", "stale", "wrong"):
        _import_lines.labels(outcome)
    _build.labels(__version__, platform.python_version()).set(1)


def count_request(
    route: str | None, method: str, *, status: int, code: str | None, seconds: float, database: Queries
) -> None:
    """Count an answered request; route and method are in their logged form."""
    _request_cell(route or "", method, status, code or "")()
    cells = _route_cells(route or "")
    cells.duration(seconds)
    if database.value:
        cells.queries(database.value)
        cells.database_time(database.seconds)
    if code in _JWT_CODES:
        _jwt_refusals.labels(code).inc()


def count_refused_turn(share: str) -> None:
    """Count a read that was refused because its organization or visitor had used up its share of turns."""
    _refused_turns.labels(share).inc()


def count_pool(pool: str, stats: dict[str, int]) -> None:
    """Add psycopg_pool's counts since the last call, and set its present state."""
    size = stats["pool_size"]
    _pool_connections.labels(pool).set(size)
    _pool_in_use.labels(pool).set(size - stats["pool_available"])
    _pool_maximum.labels(pool).set(stats["pool_max"])
    _pool_attempts.labels(pool).inc(stats.get("connections_num", 0))
    _pool_failures.labels(pool).inc(stats.get("connections_errors", 0))
    _pool_broken.labels(pool).inc(stats.get("connections_lost", 0) + stats.get("returns_bad", 0))
    _pool_queued.labels(pool).inc(stats.get("requests_queued", 0))


def count_replica(pool: str, *, is_ready: bool) -> None:
    """Set whether this worker reads from a replica."""
    _replica_workers.labels(pool).set(is_ready)


def count_import(*, lines: int, stale: int, wrong: int, is_stored: bool) -> None:
    """Count the lines of an import. What was refused as a whole stored none."""
    if is_stored:
        _import_lines.labels("stored").inc(lines - stale - wrong)
    _import_lines.labels("stale").inc(stale)
    _import_lines.labels("wrong").inc(wrong)


def show_late_feeds(number: int) -> None:
    """Show how many organizations have a feed that came regularly, and does not any more."""
    _late_feeds.set(number)


def exposition() -> bytes:
    """Return all metrics of all workers in Prometheus' text format."""
    shared = metrics_files.directory()
    if shared is None:
        return generate_latest(registry)
    for _ in range(_TRIES):
        # A new worker's file is empty for a moment and cannot be read.
        with suppress(struct.error):
            return _sums(shared)
        sleep(_PAUSE_SECONDS)
    return _sums(shared)


def _sums(shared: Path) -> bytes:
    sums = CollectorRegistry()
    MultiProcessCollector(sums, path=str(shared))
    return generate_latest(sums)

"""Measures what each index of `cases` costs those who write and gives those who read, by taking it away.

Of each variant of the schema, an index less or others in its place, it prints the write-ahead log and the server's CPU
time of an import of a hundred changed cases, of a PATCH and of a load, and the pages that read far more buffers then.
Log and buffers are counted and not timed, so that they are the same on a busy machine. Everything happens in
transactions that are rolled back.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
import psutil
import psycopg
from psycopg import sql

from benchmarks.dataset import (
    CONTACTS,
    ORDINARY_CASES,
    ORGANIZATION,
    STATEMENTS,
    Size,
    database,
    heavy_visitor,
    written_cases,
)
from benchmarks.report import table
from cases_service.cases.filters import Filters
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.database.pipeline import Query
from cases_service.database.session_settings import of_service
from cases_service.database.statements import numbered
from cases_service.loading.load import Load, LoadOptions
from cases_service.settings import Settings
from cases_service.store.cases import list_cases, summarize_cases
from cases_service.store.organization_pages import list_cases as list_organization_cases

Connection = psycopg.Connection[tuple[Any, ...]]
Line = dict[str, Any]

_SETTINGS: Final = {
    "full_page_writes": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "32GB",
    "autovacuum": "off",
    "shared_buffers": "2GB",
    "wal_level": "replica",
}
"""So that the log holds all that the rows need, of indexes that were just made, too, and nothing of checkpoints."""

_IMPORTED: Final = 100
_IMPORTS: Final = 10
_CHANGES: Final = 500
_SECONDS: Final = 600.0
_LOOKS: Final = 3
_GREW: Final = 2.0
_CHANGE: Final = numbered("writing")["change_case"]
_COVERING: Final = (
    "drop index cases_of_contact_by_priority_and_creation",
    "drop index cases_of_contact_by_priority_and_update",
    "drop index cases_of_contact_by_channel_and_creation",
    "drop index cases_of_contact_by_channel_and_update",
    "drop index cases_of_contact_by_creation",
    "drop index cases_of_contact_by_update",
    """
    create index cases_of_contact_by_creation on cases (organization_id, contact_id, created_at, id)
    include (updated_at, status, priority, channel_number)
    """,
    """
    create index cases_of_contact_by_update on cases (organization_id, contact_id, updated_at, id)
    include (
        created_at, status, priority, channel_number, is_waiting, unread_message_count, visitor_unread_message_count
    )
    """,
)
_COVERING_ORGANIZATION: Final = (
    "drop index cases_of_organization_by_creation",
    "drop index cases_of_organization_by_update",
    """
    create index cases_of_organization_by_creation on cases (organization_id, created_at, id)
    include (updated_at, status, priority, channel_number, contact_id, owner_id)
    """,
    """
    create index cases_of_organization_by_update on cases (organization_id, updated_at, id)
    include (created_at, status, priority, channel_number, contact_id, owner_id)
    """,
)
_ADDED: Final = {
    "contact with each time, covering, instead of priority and channel": _COVERING,
    "organization with each time, covering": _COVERING_ORGANIZATION,
    "also owner with each time": (
        "create index on cases (organization_id, owner_id, created_at, id)",
        "create index on cases (organization_id, owner_id, updated_at, id)",
    ),
}


@dataclass
class Variant:
    """What is done to the schema, and what came of it, write by write and page by page."""

    title: str
    statements: Sequence[str]
    log: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    bytes_a_case: float = 0.0


def main() -> None:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.indexes", description=__doc__)
    parser.add_argument("--cases", type=int, default=300_000, help="cases in all")
    parser.add_argument("--heavy", type=int, default=60_000, help="cases of each heavy visitor")
    parser.add_argument("--loaded", type=int, default=20_000, help="cases of the load")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    size = Size(arguments.cases, arguments.heavy)
    with database(size, settings=_SETTINGS) as url, psycopg.connect(url, autocommit=True) as connection:
        variants = _variants(connection)
        measured = _Measured(connection, loaded=arguments.loaded)
        # What an earlier run wrote and took back is in the indexes still.
        connection.execute("reindex table cases")
        connection.execute("vacuum (analyze) cases")
        for variant in variants:
            measured.measure_reads(variant)
        # In the first round, pages are full that split in the later ones.
        for number in range(arguments.rounds + 1):
            for variant in variants:
                measured.measure_writes(variant, keep=number > 0)
                connection.execute("vacuum cases")
    sys.stdout.write(_report(variants))


def _variants(connection: Connection) -> list[Variant]:
    names = [row[0] for row in connection.execute(STATEMENTS["list_indexes"]).fetchall()]
    dropped = [Variant(f"without {name.removeprefix('cases_of_')}", [f"drop index {name}"]) for name in sorted(names)]
    return [Variant("as it is", ()), *dropped, *(Variant(title, made) for title, made in _ADDED.items())]


class _Measured:
    """Measures variants on one connection."""

    def __init__(self, connection: Connection, *, loaded: int) -> None:
        self._connection = connection
        self._server = psutil.Process(connection.info.backend_pid)
        self._reads = dict(_reads())
        self._numbers = iter(range(sys.maxsize))
        self._imported = [self._lines(written_cases(first * _IMPORTED, _IMPORTED)) for first in range(_IMPORTS)]
        self._changed = self._lines(written_cases(20_000, _CHANGES))
        self._loaded = self._lines(written_cases(30_000, loaded))

    def measure_writes(self, variant: Variant, *, keep: bool) -> None:
        """Make the variant, write, and take everything back."""
        writes: dict[str, tuple[int, Callable[[], None]]] = {
            "import": (_IMPORTS, self._import),
            "PATCH": (_CHANGES, self._change),
            "load": (len(self._loaded), self._load),
        }
        with self._made(variant):
            for name, (times, write) in writes.items():
                log, cpu = self._cost(write)
                if keep:
                    variant.log.setdefault(name, []).append(log / times)
                    variant.cpu.setdefault(name, []).append(cpu / times)

    @contextmanager
    def _made(self, variant: Variant) -> Iterator[None]:
        with self._connection.transaction(force_rollback=True):
            for statement in variant.statements:
                self._connection.execute(statement)
            yield

    def _cost(self, write: Callable[[], None]) -> tuple[int, float]:
        """Return the bytes of write-ahead log and the seconds of the server's CPU time that a write takes."""
        with self._connection.transaction(force_rollback=True):
            before, began = self._cpu(), self._log()
            write()
            return self._log() - began, self._cpu() - before

    def _cpu(self) -> float:
        times = self._server.cpu_times()
        return float(times.user + times.system)

    def _log(self) -> int:
        row = self._connection.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        return int((row or (0,))[0])

    def _lines(self, case_ids: Sequence[UUID]) -> list[Line]:
        parameters = {"organization_id": ORGANIZATION, "case_ids": list(case_ids)}
        return [row[0] for row in self._connection.execute(STATEMENTS["list_lines"], parameters).fetchall()]

    def _import(self) -> None:
        for lines in self._imported:
            # An import ends with its transaction, and so with its staging tables.
            with self._connection.transaction(force_rollback=True):
                self._store(line | {"subject": f"Imported as the {next(self._numbers)}th"} for line in lines)

    def _load(self) -> None:
        renamed = (line | {"id": str(uuid4()), "case_number": f"loaded-{next(self._numbers)}"} for line in self._loaded)
        self._store(renamed)

    def _store(self, lines: Iterator[Line]) -> None:
        options = LoadOptions(organization_id=ORGANIZATION)
        load = Load.of_request(self._connection, options, deadline=monotonic() + _SECONDS)
        load.stage("lines", enumerate((msgspec.json.encode({"type": "case"} | line) for line in lines), start=1))
        if load.write().error_count:
            raise RuntimeError("some lines were wrong")
        self._connection.execute("set constraints all immediate")

    def _change(self) -> None:
        cursor = psycopg.RawCursor(self._connection)
        for line in self._changed:
            values = line | {"case_id": line["id"], "subject": f"Changed as the {next(self._numbers)}th"}
            values["now"] = "now"
            cursor.execute(_CHANGE.text, [values[name] for name in _CHANGE.parameters], prepare=True)

    def measure_reads(self, variant: Variant) -> None:
        """Make the variant, see what pages cost and how large the indexes are, and take everything back."""
        with self._made(variant), _as_the_service(self._connection):
            cursor = psycopg.RawCursor(self._connection)
            for name, query in self._reads.items():
                values = [query.parameters[parameter] for parameter in query.statement.parameters]
                for _ in range(_LOOKS):
                    cursor.execute(b"explain (analyze, buffers, format json) " + query.statement.text, values)
                    (plan,) = (cursor.fetchone() or ([{}],))[0]
                    variant.milliseconds.setdefault(name, []).append(plan["Execution Time"])
                root = plan["Plan"]
                variant.buffers[name] = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
            row = self._connection.execute("select pg_indexes_size('cases') / count(*)::float8 from cases").fetchone()
            variant.bytes_a_case = float((row or (0.0,))[0])


@contextmanager
def _as_the_service(connection: Connection) -> Iterator[None]:
    """Plan as the service's sessions do."""
    with connection.transaction(force_rollback=True):
        for name, value in of_service(Settings()).items():
            if name.startswith("enable_") or name == "jit":
                connection.execute(sql.SQL("set local {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        yield


def _reads() -> Iterator[tuple[str, Query[Any]]]:
    """Yield the pages of a heavy visitor and of the organization whose cost depends on an index."""
    filters = {
        "": Filters(),
        ", status=Open": Filters(statuses=frozenset({"Open"})),
        ", is_closed=true": Filters(is_closed=True),
        ", priority=5": Filters(priorities=frozenset({5})),
        ", priority=3": Filters(priorities=frozenset({3})),
        ", channel=webchat": Filters(channels=frozenset({"webchat"})),
        ", channel=email": Filters(channels=frozenset({"email"})),
    }
    visitor: dict[str, Any] = {"organization_id": ORGANIZATION, "external_id": heavy_visitor(CONTACTS[0])}
    page: dict[str, Any] = {"fields": None, "cursor": None, "page_size": ORDINARY_CASES}
    for ordering in ("created_at", "updated_at"):
        for name, wanted in filters.items():
            yield f"{ordering}{name}", list_cases(**visitor, **page, ordering=ordering, filters=wanted)
        for name in ("", ", status=Open", ", priority=5", ", channel=email"):
            ordinary = {**visitor, "external_id": "ordinary-1"}
            yield (
                f"ordinary visitor, {ordering}{name}",
                list_cases(**ordinary, **page, ordering=ordering, filters=filters[name]),
            )
    yield "summary", summarize_cases(**visitor, filters=Filters())
    owners = {"": None, ", an owner of none": frozenset({str(UUID(int=1))})}
    for ordering in ("created_at", "updated_at"):
        for name, owner_ids in owners.items():
            wanted_of_all = OrganizationFilters(common=Filters(), owner_ids=owner_ids)
            query = list_organization_cases(
                organization_id=ORGANIZATION, **page, ordering=ordering, filters=wanted_of_all
            )
            yield f"organization, {ordering}{name}", query


def _report(variants: Sequence[Variant]) -> str:
    base = variants[0]
    head = (
        "indexes on `cases`",
        "bytes a case",
        "import of 100: log kB",
        "CPU ms",
        "PATCH: log bytes",
        "CPU µs",
        "load: log bytes a case",
        "CPU µs a case",
        f"pages that read {_GREW:g} times the buffers or more",
    )
    rows = [
        (
            variant.title,
            f"{variant.bytes_a_case:,.0f}",
            f"{median(variant.log['import']) / 1024:,.0f}",
            f"{median(variant.cpu['import']) * 1e3:,.1f}",
            f"{median(variant.log['PATCH']):,.0f}",
            f"{median(variant.cpu['PATCH']) * 1e6:,.0f}",
            f"{median(variant.log['load']):,.0f}",
            f"{median(variant.cpu['load']) * 1e6:,.0f}",
            _slower(variant, base),
        )
        for variant in variants
    ]
    pages = [(name, f"{base.buffers[name]:,}", f"{median(base.milliseconds[name]):.2f}") for name in base.buffers]
    return f"{table(head, rows)}\n\n{table(('page', 'buffers', 'ms'), pages)}\n\n{json.dumps(_figures(variants))}\n"


def _slower(variant: Variant, base: Variant) -> str:
    grown = [
        f"{name}: {base.buffers[name]:,} → {buffers:,}, {median(variant.milliseconds[name]):,.1f} ms"
        for name, buffers in variant.buffers.items()
        if buffers >= _GREW * base.buffers[name] or base.buffers[name] >= _GREW * buffers
    ]
    return "; ".join(grown)


def _figures(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return [{"variant": variant.title, "buffers": variant.buffers} for variant in variants]


if __name__ == "__main__":
    main()

"""Makes the data set of the measurements, in a database of its own that is used again where it fits."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import aiosql
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.database.migrations import init_db
from cases_service.database.statements import source
from cases_service.embedded.server import join

FOLDER: Final = Path(__file__).parent
ORGANIZATION: Final = UUID("0b5b1c5e-3d0f-4b5a-9d8e-6c1f2a7b9e10")
ORDINARY_CASES: Final = 25
CONTACTS: Final = (2, 20, 200)
LONG_CONVERSATION: Final = "conversation-100000"
SHORT_CONVERSATION: Final = "conversation-30"
_FIRST_WRITTEN: Final = 1_001
_WRITTEN_VISITORS: Final = 4_000
_SERVICE_ROLE: Final = "cases_benchmark"
_WRITER_ROLE: Final = "cases_benchmark_writer"
_SERVER: Final = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
}

Connection = psycopg.Connection[tuple[Any, ...]]


def load_statements(subject: str) -> dict[str, str]:
    """Return the statements of queries/<subject>.sql by name, with psycopg's %(name)s parameters."""
    queries = aiosql.from_path(FOLDER / "queries" / f"{subject}.sql", "psycopg", mandatory_parameters=False)
    return {name: getattr(queries, name).sql for name in queries.available_queries if "cursor" not in name}


STATEMENTS: Final = load_statements("dataset")


@dataclass(frozen=True)
class Size:
    """How many cases there are, and how many of them a heavy visitor has."""

    cases: int
    heavy: int
    steps: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        steps = tuple(10**power for power in (2, 3, 4, 5) if 10**power < self.heavy)
        object.__setattr__(self, "steps", steps)

    @property
    def ordinary_visitors(self) -> int:
        """How many visitors of 25 cases fill the table up."""
        skewed = self.heavy * len(CONTACTS) + sum(self.steps)
        return max(self.cases - skewed, 10_000) // ORDINARY_CASES + 1

    @property
    def skewed_visitors(self) -> dict[str, tuple[int, int]]:
        """Contacts and cases of the visitors that are not ordinary, by external id."""
        heavy = {heavy_visitor(contacts): (contacts, self.heavy) for contacts in CONTACTS}
        talkative = dict.fromkeys((LONG_CONVERSATION, SHORT_CONVERSATION), (1, 20))
        return heavy | {f"cases-{cases}": (2, cases) for cases in self.steps} | talkative

    @property
    def database(self) -> str:
        """The name of the database, so that several sizes can be kept."""
        return f"cases_benchmark_{self.cases}_{self.heavy}"

    def description(self) -> str:
        """Return what the data set is made from; a database that says the same is used again."""
        files = (source("schema.sql"), FOLDER / "queries" / "dataset.sql")
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return json.dumps({**asdict(self), "made_by": digest})


def heavy_visitor(contacts: int) -> str:
    """Return the external id of the heavy visitor with so many contacts."""
    return f"heavy-{contacts}"


@contextmanager
def database(size: Size, *, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Give the URL of a database with a data set of this size, which is made where there is none.

    The settings are for the embedded server, in place of its own.
    """
    with _server(settings) as url:
        yield _prepared(url, size)


@contextmanager
def scratch_database(url: str, name: str) -> Iterator[str]:
    """Give the URL of a new database on the same server, with the schema and no rows; it is removed at the end."""
    database = sql.Identifier(name)
    own = make_conninfo(url, dbname=name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {}").format(database))
        connection.execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(database))
        try:
            with psycopg.connect(own, autocommit=True) as fresh:
                _let_serve(fresh)
            yield own
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(database))


@contextmanager
def _server(settings: Mapping[str, str]) -> Iterator[str]:
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with join(FOLDER / "data", settings={**_SERVER, **settings}) as server:
        yield server.conninfo
        server.leave()
        server.wait_stopped(60)


def _prepared(url: str, size: Size) -> str:
    name = sql.Identifier(size.database)
    own = make_conninfo(url, dbname=size.database)
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("select from pg_database where datname = %s", [size.database]).fetchone()
        if found is None:
            connection.execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(name))
    with psycopg.connect(own, autocommit=True) as connection:
        if _holds(connection, size):
            _let_serve(connection)
            return own
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {}").format(name))
        connection.execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(name))
    _make(own, size)
    return own


def service_url(url: str) -> str:
    """Return the URL of the same database for the role that reads, which row security holds for."""
    return make_conninfo(url, user=_SERVICE_ROLE, password=_SERVICE_ROLE)


def writer_url(url: str) -> str:
    """Return the URL of the same database for the role that writes cases, which row security holds for."""
    return make_conninfo(url, user=_WRITER_ROLE, password=_WRITER_ROLE)


def _let_serve(connection: Connection) -> None:
    for name in (_SERVICE_ROLE, _WRITER_ROLE):
        if connection.execute("select from pg_roles where rolname = %s", [name]).fetchone() is None:
            role = sql.Identifier(name)
            connection.execute(sql.SQL("create role {} login password {}").format(role, sql.Literal(name)))
    init_db(connection, service_role=_SERVICE_ROLE, writer_role=_WRITER_ROLE)


def _holds(connection: Connection, size: Size) -> bool:
    if not _row(connection, "has_dataset")[0]:
        return False
    return bool(_row(connection, "find_dataset")[0] == size.description())


def _make(url: str, size: Size) -> None:
    _say(f"making {size.cases:,} cases")
    with psycopg.connect(url, autocommit=True) as connection:
        _let_serve(connection)
        connection.execute("set work_mem = '256MB'")
        connection.execute("set maintenance_work_mem = '512MB'")
        connection.execute("set synchronous_commit = off")
        with connection.transaction():
            _fill(connection, size)
        connection.execute("vacuum (freeze, analyze)")
        connection.execute("checkpoint")
        connection.execute(STATEMENTS["finish_dataset"], {"description": size.description()})


def _fill(connection: Connection, size: Size) -> None:
    connection.execute(STATEMENTS["create_specification"])
    connection.execute(STATEMENTS["specify_ordinary_visitors"], {"visitors": size.ordinary_visitors})
    for external_id, (contacts, cases) in size.skewed_visitors.items():
        parameters = {"external_id": external_id, "contacts": contacts, "cases": cases}
        connection.execute(STATEMENTS["specify_visitor"], parameters)
    for table in ("organization", "users", "stages", "visitors", "contacts"):
        connection.execute(STATEMENTS[f"fill_{table}"], {"organization_id": ORGANIZATION})
    _fill_cases(connection)
    for table in ("activities", "messages"):
        connection.execute(STATEMENTS[f"fill_{table}"], {"organization_id": ORGANIZATION})


def _fill_cases(connection: Connection) -> None:
    """Fill the table without its keys and indexes, and make them afterwards, which is several times as fast."""
    constraints = connection.execute(STATEMENTS["list_constraints"]).fetchall()
    indexes = connection.execute(STATEMENTS["list_indexes"]).fetchall()
    for table, name, _ in reversed(constraints):
        drop = sql.SQL("alter table {} drop constraint {}")
        connection.execute(drop.format(sql.Identifier(table), sql.Identifier(name)))
    for name, _ in indexes:
        connection.execute(sql.SQL("drop index {}").format(sql.Identifier(name)))
    started = time.monotonic()
    connection.execute(STATEMENTS["fill_cases"], {"organization_id": ORGANIZATION})
    _say(f"rows: {time.monotonic() - started:.0f} s")
    for _, definition in indexes:
        connection.execute(definition)
    for table, name, definition in constraints:
        add = sql.SQL("alter table {} add constraint {} ").format(sql.Identifier(table), sql.Identifier(name))
        connection.execute(add + sql.SQL(definition))
    _say(f"with indexes and constraints: {time.monotonic() - started:.0f} s")


def places(connection: Connection, external_id: str, column: str, wanted: Sequence[int]) -> dict[int, tuple[int, UUID]]:
    """Return sort value, in microseconds, and id of a visitor's cases at these places, counted from 0, ascending."""
    parameters = {"organization_id": ORGANIZATION, "external_id": external_id, "places": list(wanted)}
    rows = connection.execute(STATEMENTS[f"list_places_by_{column}"], parameters).fetchall()
    return {place: (microseconds, UUID(case_id)) for place, microseconds, case_id in rows}


def case_with_messages(connection: Connection, external_id: str) -> UUID:
    """Return the id of the case of a visitor in which there are messages."""
    row = connection.execute(STATEMENTS["get_first_case"], {"external_id": external_id}).fetchone()
    return UUID((row or ("",))[0])


def message_place(connection: Connection, case_id: UUID, share: float) -> tuple[int, UUID]:
    """Return time, in microseconds, and id of the message behind such a share of those that a visitor sees."""
    parameters = {"organization_id": ORGANIZATION, "case_id": case_id, "share": share}
    row = connection.execute(STATEMENTS["get_place_of_message"], parameters).fetchone()
    microseconds, message_id = row or (0, "")
    return microseconds, UUID(message_id)


def written_cases(first: int, number: int) -> list[UUID]:
    """Return the ids of so many of the cases that measures of writing change, from a place on, round and round.

    They are those of ordinary visitors whose pages nobody asks for, one of each visitor after the other.
    """
    places = (place % (_WRITTEN_VISITORS * ORDINARY_CASES) for place in range(first, first + number))
    named = ((_FIRST_WRITTEN + place % _WRITTEN_VISITORS, 1 + place // _WRITTEN_VISITORS) for place in places)
    return [
        UUID(hashlib.md5(f"case {visitor} {case}".encode(), usedforsecurity=False).hexdigest())
        for visitor, case in named
    ]


def true_messages(connection: Connection, case_id: UUID, *, number: int) -> list[dict[str, Any]]:
    """Return the first messages of a case that its visitor sees, read in the plainest way there is."""
    parameters = {"organization_id": ORGANIZATION, "case_id": case_id, "number": number}
    return [row[0] for row in connection.execute(STATEMENTS["list_true_messages"], parameters).fetchall()]


def true_cases(connection: Connection, external_id: str, *, first: int, number: int) -> list[dict[str, Any]]:
    """Return some of a visitor's cases in the order of creation, read in the plainest way there is."""
    parameters = {"organization_id": ORGANIZATION, "external_id": external_id, "first": first, "number": number}
    return [row[0] for row in connection.execute(STATEMENTS["list_true_cases"], parameters).fetchall()]


def _row(connection: Connection, statement: str) -> tuple[Any, ...]:
    row = connection.execute(STATEMENTS[statement]).fetchone()
    return (None,) if row is None else row


def _say(text: str) -> None:
    sys.stderr.write(f"data set: {text}\n")
    sys.stderr.flush()

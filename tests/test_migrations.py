"""The schema: made once, by whoever comes first, and the same whether new or upgraded."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.database import migrations
from cases_service.database.migrations import SCHEMA_VERSION, SchemaError, init_db
from cases_service.database.statements import source
from cases_service.embedded.server import _find_programs


@pytest.fixture
def new_database(server_url: str) -> Iterator[Callable[..., str]]:
    names: list[str] = []

    def new_database(encoding: str = "UTF8") -> str:
        names.append(f"cases_test_{uuid4().hex[:12]}")
        server.execute(f"create database {names[-1]} template template0 encoding '{encoding}' locale 'C'")
        return make_conninfo(server_url, dbname=names[-1])

    with psycopg.connect(server_url, autocommit=True) as server:
        yield new_database
        for name in names:
            server.execute(f"drop database {name} with (force)")


def initialize(url: str) -> tuple[int, int]:
    with psycopg.connect(url, autocommit=True) as connection:
        return init_db(connection)


def dump(url: str) -> str:
    """Return the schema as pg_dump writes it, without what differs from run to run."""
    command: list[str | Path] = [_find_programs(None) / "pg_dump", "--schema-only", "--no-owner", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (line for line in text.splitlines() if not line.startswith(("--", "\\")))
    # Some builds of PostgreSQL 15 number each column's definition for themselves.
    return "\n".join(line for line in lines if "SET (pg_attver=" not in line)


def test_an_empty_database_gets_the_newest_schema(new_database: Callable[..., str]) -> None:
    assert initialize(new_database()) == (0, SCHEMA_VERSION)


def test_it_is_safe_to_repeat(new_database: Callable[..., str]) -> None:
    url = new_database()
    initialize(url)
    before = dump(url)
    assert initialize(url) == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert dump(url) == before


def test_several_at_once_make_one_schema(new_database: Callable[..., str]) -> None:
    url = new_database()
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(initialize, [url] * 6))
    assert sorted(results) == [(0, SCHEMA_VERSION), *[(SCHEMA_VERSION, SCHEMA_VERSION)] * 5]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_an_upgraded_database_equals_a_fresh_one(new_database: Callable[..., str], version: int) -> None:
    fresh, upgraded = new_database(), new_database()
    initialize(fresh)
    with psycopg.connect(upgraded, autocommit=True) as connection:
        for number, file in migrations._files().items():
            if number <= version:
                connection.execute(file.read_bytes())
        connection.execute("insert into schema_version (version) values (%s)", [version])
    assert initialize(upgraded) == (version, SCHEMA_VERSION)
    assert dump(upgraded) == dump(fresh)


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [int(file.name[:4]) for file in sorted(source("migrations").iterdir())]
    assert numbers == list(range(1, SCHEMA_VERSION + 1))


def test_a_newer_schema_is_left_alone(new_database: Callable[..., str]) -> None:
    url = new_database()
    initialize(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update schema_version set version = version + 1")
    with pytest.raises(SchemaError, match="upgrade"):
        initialize(url)


def test_a_database_that_is_not_utf8_is_refused(new_database: Callable[..., str]) -> None:
    with pytest.raises(SchemaError, match="UTF8"):
        initialize(new_database("SQL_ASCII"))


def test_a_failed_upgrade_leaves_nothing(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    broken = tmp_path / "schema.sql"
    broken.write_text(source("schema.sql").read_text() + "select 1 / 0;")
    monkeypatch.setattr(migrations, "source", lambda _name: broken)
    with pytest.raises(psycopg.errors.DivisionByZero):
        initialize(url)
    monkeypatch.undo()
    assert initialize(url) == (0, SCHEMA_VERSION)

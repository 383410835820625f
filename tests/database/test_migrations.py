"""The schema: created once, by the first process, and the same whether new or upgraded."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.database import migrations
from cases_service.database.migrations import SCHEMA_VERSION, SchemaBusyError, SchemaError, init_db, version_of
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


def make(url: str, version: int) -> None:
    """Make the schema of an older release."""
    with psycopg.connect(url, autocommit=True) as connection:
        for number, file in migrations._files().items():
            if number <= version:
                for step in migrations.steps_of(file):
                    for statement in step.statements if step.kind == "outside" else [step.text]:
                        connection.execute(statement.encode())
        connection.execute("insert into schema_version (version) values (%s)", [version])


def dump(url: str) -> str:
    """Return the schema as pg_dump writes it, without what differs from run to run."""
    command: list[str | Path] = [_find_programs(None) / "pg_dump", "--schema-only", "--no-owner", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = (line for line in text.splitlines() if not line.startswith(("--", "\\")))
    # Some builds of PostgreSQL 15 number each column's definition for themselves.
    lines = (re.sub(r"pg_attver=\d+(, )?", "", line) for line in lines)
    return "\n".join(line for line in lines if " SET ()" not in line)


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


@pytest.mark.parametrize("version", migrations._files())
def test_an_upgraded_database_equals_a_fresh_one(new_database: Callable[..., str], version: int) -> None:
    fresh, upgraded = new_database(), new_database()
    initialize(fresh)
    make(upgraded, version)
    assert initialize(upgraded) == (version, SCHEMA_VERSION)
    assert dump(upgraded) == dump(fresh)


def test_an_upgrade_lets_the_planner_look_at_what_it_is_told(previous: str) -> None:
    initialize(previous)
    with psycopg.connect(previous) as connection:
        told = connection.execute(
            "select n_distinct from pg_stats where (tablename, attname) = ('cases', 'organization_id')"
        )
        assert told.fetchone() == (1,)


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


PREVIOUS = 6
# What the release before asked for a page, in essence: its statements go on while the schema is upgraded.
PAGE = """
    select c.id, c.subject, c.status, c.content_hash, x."contact.full_name", u."owner.full_name"
    from cases c
    join case_contacts x on x."contact.organization_id" = c.organization_id and x."contact.id" = c.contact_id
    left join case_owners u on u."owner.organization_id" = c.organization_id and u."owner.id" = c.owner_id
    where c.organization_id = %s and c.contact_id = %s
    order by c.created_at, c.id
    limit 25
"""
ORGANIZATION_ID, CONTACT_ID = str(uuid4()), str(uuid4())
FILL = f"""
    insert into organizations (organization_id, name, subscription_status) values ('{ORGANIZATION_ID}', 'A', 'active');
    insert into contacts (organization_id, id, created_at, updated_at)
        values ('{ORGANIZATION_ID}', '{CONTACT_ID}', now(), now());
    insert into cases (
        organization_id, id, contact_id, case_number, subject, description, status, priority, created_at, updated_at
    )
    select '{ORGANIZATION_ID}', gen_random_uuid(), '{CONTACT_ID}', n, n, repeat('x', 500), 'Open', 3, now(), now()
    from generate_series(1, 5000) n;
"""


@pytest.fixture
def previous(new_database: Callable[..., str]) -> str:
    """A database with the schema of the release before, and some data."""
    url = new_database()
    make(url, PREVIOUS)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.encode())
    return url


@contextmanager
def held(url: str, table: str, application: str = "report") -> Iterator[psycopg.Connection]:
    """Hold a table as a report does: a transaction that has read it and is not done."""
    with psycopg.connect(url, application_name=application) as holder:
        holder.execute(f"select from {table} limit 1".encode())
        yield holder


@contextmanager
def reading(url: str, clients: int = 2) -> Iterator[list[float]]:
    """Read a page again and again, by the statement of the release before. Collects how long each took."""
    seconds: list[float] = []
    is_over = threading.Event()

    def read() -> None:
        with psycopg.connect(url, autocommit=True, options="-c statement_timeout=2000") as connection:
            while not is_over.is_set():
                began = time.monotonic()
                assert len(connection.execute(PAGE, [ORGANIZATION_ID, CONTACT_ID]).fetchall()) == 25
                seconds.append(time.monotonic() - began)

    with ThreadPoolExecutor(clients) as threads:
        readers = [threads.submit(read) for _ in range(clients)]
        try:
            yield seconds
        finally:
            is_over.set()
        for reader in readers:
            reader.result()


def test_an_upgrade_that_waits_for_a_report_keeps_no_reader_waiting(previous: str) -> None:
    said: list[str] = []
    with (
        reading(previous) as seconds,
        psycopg.connect(previous, autocommit=True) as connection,
        ThreadPoolExecutor() as threads,
    ):
        with held(previous, "cases") as report:
            upgrading = threads.submit(init_db, connection, wait=30, say=said.append)
            time.sleep(4)
            assert not upgrading.done()
            pid = report.info.backend_pid
        assert upgrading.result(timeout=30) == (PREVIOUS, SCHEMA_VERSION)
    assert f"waiting for process {pid} (report), which uses cases" in said
    # A moment is half a second; the readers ran for four.
    assert max(seconds) < 1.5
    assert len(seconds) > 50


def test_an_upgrade_gives_up_and_names_whom_it_waits_for(previous: str) -> None:
    with psycopg.connect(previous, autocommit=True) as connection, held(previous, "cases", "nightly\x1b[2J") as report:
        with pytest.raises(SchemaBusyError) as caught:
            init_db(connection, wait=1)
        assert re.fullmatch(
            rf"gave up waiting for process {report.info.backend_pid} \(nightly[^\x1b]*\), which uses cases:"
            r" end that, or try again later; what was done is kept",
            str(caught.value),
        )
    assert initialize(previous)[1] == SCHEMA_VERSION


def test_an_upgrade_says_that_another_one_is_at_work(previous: str) -> None:
    with psycopg.connect(previous, autocommit=True) as other, psycopg.connect(previous, autocommit=True) as connection:
        other.execute("select pg_advisory_lock(7215398844120)")
        with pytest.raises(SchemaBusyError, match=f"waiting for another init-db, process {other.info.backend_pid}"):
            init_db(connection, wait=0.5)


def test_a_new_schema_is_given_to_the_service_although_somebody_reads(previous: str, service_role: str) -> None:
    initialize(previous)
    with psycopg.connect(previous, autocommit=True) as connection, held(previous, "cases"):
        assert init_db(connection, service_role=service_role, wait=0) == (SCHEMA_VERSION, SCHEMA_VERSION)


def test_an_upgrade_under_requests_fails_none(previous: str) -> None:
    with (
        reading(previous, clients=4) as seconds,
        psycopg.connect(previous, autocommit=True) as writer,
        ThreadPoolExecutor() as threads,
    ):
        upgrading = threads.submit(initialize, previous)
        while not upgrading.done():
            writer.execute("update cases set subject = 'new' where id = (select id from cases limit 1)")
        assert upgrading.result() == (PREVIOUS, SCHEMA_VERSION)
    assert max(seconds) < 1.5


def test_texts_over_the_bound_stop_the_upgrade_and_are_named(previous: str) -> None:
    with psycopg.connect(previous, autocommit=True) as connection:
        connection.execute("update cases set subject = repeat('y', 1001) where case_number in ('1', '2', '3', '4')")
        connection.execute("update organizations set name = repeat('n', 300)")
    (bounds,) = source("migrations").glob("*_bound_every_text.sql")
    with pytest.raises(SchemaError) as caught:
        initialize(previous)
    message = str(caught.value)
    assert message.startswith("5 texts are longer than the schema allows, shorten them and run init-db again: ")
    assert f"organizations {ORGANIZATION_ID}: name has 300 characters; cases " in message
    assert message.endswith(": subject has 1001 characters; …")
    with psycopg.connect(previous, autocommit=True) as connection:
        assert version_of(connection) == int(bounds.name[:4]) - 1
        connection.execute("update cases set subject = '' where char_length(subject) > 1000")
        connection.execute("update organizations set name = 'n'")
    assert initialize(previous)[1] == SCHEMA_VERSION


STEPS = """
-- A migration of every kind of step.

-- step: refuse users have no name, give them one
select count(*) over (), format('user %s', id) from users where last_name is null limit 3;

-- step: transaction
alter table cases add column wordiness integer;

-- step: repeat
update cases set wordiness = char_length(subject)
where (organization_id, id) in (select organization_id, id from cases where wordiness is null limit 2000);

-- step: outside
drop index concurrently if exists cases_by_wordiness;
create index concurrently cases_by_wordiness on cases (organization_id, wordiness);

-- step: transaction
alter table cases add constraint cases_have_words check (wordiness is not null) not valid;
alter table cases validate constraint cases_have_words;
"""


@pytest.fixture
def current(previous: str) -> str:
    """The same database with the schema of this release."""
    initialize(previous)
    return previous


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A migration after the newest, with steps; it may be written anew."""
    file = tmp_path / f"{SCHEMA_VERSION + 1:04}_steps.sql"
    file.write_text(STEPS)
    files = migrations._files() | {SCHEMA_VERSION + 1: file}
    monkeypatch.setattr(migrations, "_files", lambda: files)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    return file


def state(url: str) -> tuple[int, int]:
    with psycopg.connect(url) as connection:
        return connection.execute("select version, steps_done from schema_version").fetchone() or (0, 0)


def test_steps_of_every_kind_are_taken_in_order(previous: str, next_release: Path) -> None:
    assert initialize(previous) == (PREVIOUS, SCHEMA_VERSION + 1)
    assert state(previous) == (SCHEMA_VERSION + 1, 0)
    with psycopg.connect(previous) as connection:
        found = connection.execute("select count(*) from cases where wordiness = char_length(subject)")
        assert found.fetchone() == (5000,)
        valid = connection.execute("select indisvalid from pg_index where indexrelid = 'cases_by_wordiness'::regclass")
        assert valid.fetchone() == (True,)


def test_a_step_that_fails_is_where_the_next_call_goes_on(previous: str, next_release: Path) -> None:
    next_release.write_text(
        STEPS.replace("validate", "select 1 / 0; alter table cases validate").replace(
            "alter table cases select 1 / 0", "select 1 / 0"
        )
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        initialize(previous)
    assert state(previous) == (SCHEMA_VERSION, 4)
    next_release.write_text(STEPS)
    said: list[str] = []
    with psycopg.connect(previous, autocommit=True) as connection:
        assert init_db(connection, say=said.append) == (SCHEMA_VERSION, SCHEMA_VERSION + 1)
    assert said == [f"schema {SCHEMA_VERSION + 1}, step 5 of 5"]


def test_an_index_whose_making_was_killed_is_made_anew(current: str, next_release: Path) -> None:
    """Who makes an index beside everybody else waits for all who began earlier. There it is killed."""
    with psycopg.connect(current) as report, ThreadPoolExecutor() as threads:
        report.execute("set transaction isolation level repeatable read")
        report.execute("select 1")
        upgrading = threads.submit(initialize, current)
        with psycopg.connect(current, autocommit=True) as killer:
            kill = (
                "select pg_terminate_backend(pid) from pg_stat_activity where query like 'create index concurrently%'"
            )
            deadline = time.monotonic() + 30
            while not killer.execute(kill).fetchall():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(psycopg.OperationalError):
                upgrading.result(timeout=30)
    assert state(current) == (SCHEMA_VERSION, 3)
    assert initialize(current) == (SCHEMA_VERSION, SCHEMA_VERSION + 1)
    with psycopg.connect(current) as connection:
        valid = connection.execute("select indisvalid from pg_index where indexrelid = 'cases_by_wordiness'::regclass")
        assert valid.fetchone() == (True,)


def test_what_is_in_the_way_of_a_step_is_named(previous: str, next_release: Path) -> None:
    with psycopg.connect(previous, autocommit=True) as connection:
        connection.execute("insert into users (organization_id, id) values (%s, %s)", [ORGANIZATION_ID, CONTACT_ID])
    with pytest.raises(SchemaError, match=f"1 users have no name, give them one: user {CONTACT_ID}$"):
        initialize(previous)
    assert state(previous) == (SCHEMA_VERSION, 0)

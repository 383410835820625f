"""The connections of a worker: what happens to a read when they die, are busy, or there are none."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from cases_service.database.connection_pool import Connection, Database
from cases_service.errors import OverloadedError, TimeoutProblemError, UnavailableError
from cases_service.settings import Settings
from tests.factories import Organization


@pytest.fixture
def small(settings: Settings) -> Iterator[Database]:
    """A pool of two connections that waits for a quarter of a second."""
    database = Database(
        settings.database_url or "",
        msgspec.structs.replace(settings, pool_size=2, pool_timeout=0.25, statement_timeout=0.5),
    )
    database.open()
    yield database
    database.close()


def backend(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    assert row
    return int(row[0])


def backends(database: Database) -> set[int]:
    """Return the backends of a pool of two, by holding one while asking for the other."""
    return database.read(lambda one: {backend(one), database.read(backend)})


def test_a_read_is_repeated_once_on_a_fresh_connection(small: Database, connection: psycopg.Connection) -> None:
    dead: list[int] = []

    def work(given: Connection) -> int:
        pid = backend(given)
        if not dead:
            dead.append(pid)
            connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
        return backend(given)

    assert small.read(work) not in dead


def test_a_read_is_repeated_only_once(small: Database, connection: psycopg.Connection) -> None:
    tries = []

    def work(given: Connection) -> None:
        tries.append(backend(given))
        connection.execute("select pg_terminate_backend(%s, 5000)", [tries[-1]])
        backend(given)

    with pytest.raises(UnavailableError):
        small.read(work)
    assert len(set(tries)) == 2


def test_idle_connections_that_were_cut_are_replaced_without_a_failure(
    small: Database, connection: psycopg.Connection
) -> None:
    cut = backends(small)
    for pid in cut:
        connection.execute("select pg_terminate_backend(%s, 5000)", [pid])
    tries = []

    def work(given: Connection) -> int:
        tries.append(1)
        return backend(given)

    assert small.read(work) not in cut
    assert len(tries) == 1


def test_a_slow_statement_is_a_timeout(small: Database) -> None:
    with pytest.raises(TimeoutProblemError):
        small.read(lambda given: given.execute("select pg_sleep(5)"))
    assert small.read(backend)


def test_without_a_free_connection_the_service_is_overloaded(small: Database) -> None:
    release = threading.Event()
    holders = [threading.Thread(target=small.read, args=(lambda _given: release.wait(10),)) for _ in range(2)]
    for holder in holders:
        holder.start()
    try:
        with pytest.raises(OverloadedError):
            small.read(backend)
    finally:
        release.set()
        for holder in holders:
            holder.join()
    assert small.read(backend)


def test_without_a_database_the_service_is_unavailable(settings: Settings) -> None:
    away = msgspec.structs.replace(settings, pool_timeout=0.2)
    database = Database("host=127.0.0.1 port=1 dbname=none", away)
    database.open()
    with pytest.raises(UnavailableError) as caught:
        database.read(backend)
    assert type(caught.value) is UnavailableError
    database.close()


def test_a_server_that_stops_to_answer_makes_the_service_unavailable(
    small: Database, connection: psycopg.Connection
) -> None:
    def work(given: Connection) -> None:
        pid = backend(given)
        row = connection.execute("select pid from pg_stat_activity where pid = %s", [pid]).fetchone()
        assert row
        if not Path(f"/proc/{pid}").exists():
            pytest.skip("the server's processes are not on this machine")
        os.kill(pid, signal.SIGSTOP)
        try:
            given.execute("select 1")
        finally:
            os.kill(pid, signal.SIGCONT)

    with pytest.raises(UnavailableError):
        small.read(work)
    assert small.read(backend)


def test_without_a_database_only_the_first_waits(settings: Settings) -> None:
    database = Database("host=127.0.0.1 port=1 dbname=none", msgspec.structs.replace(settings, pool_timeout=2))
    database.open()
    waited = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            database.read(backend)
        waited.append(time.monotonic() - started)
    assert max(waited[1:]) < waited[0] / 2
    database.close()


def test_a_changed_result_of_a_prepared_statement_is_read_anew(
    small: Database, connection: psycopg.Connection, organization: Organization
) -> None:
    name = f"probe_{organization.id.hex}"
    connection.execute(f"create view {name} as select 1 as a; grant select on {name} to public")
    statement: Any = f"select * from {name}"
    assert small.read(lambda given: given.execute(statement).fetchone()) == (1,)
    connection.execute(f"create or replace view {name} as select 1 as a, 2 as b")
    for _ in range(3):
        assert small.read(lambda given: given.execute(statement).fetchone()) == (1, 2)


def test_the_service_cannot_write(small: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        small.read(lambda given: given.execute("create table never (id int)"))


def test_an_error_of_the_statement_is_no_outage(small: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        small.read(lambda given: given.execute("select 1 / 0"))
    assert small.read(backend)

"""The connections of a worker: what happens to a read when they die, are busy, or there are none."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from cases_service.database import connection_pool as database
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.problems import OverloadedError, TimeoutProblemError, UnavailableError
from cases_service.settings import Settings
from tests.conftest import LogLines
from tests.factories import Organization
from tests.process.running import wait_for


@pytest.fixture
def small(settings: Settings) -> Iterator[Database]:
    """A pool of two connections that waits for a quarter of a second."""
    small = Database(
        settings.database_url or "",
        msgspec.structs.replace(settings, pool_size=2, pool_timeout=0.25, statement_timeout=0.5),
    )
    small.open()
    yield small
    small.close()


def backend(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    assert row
    return int(row[0])


def backends(pool: Database) -> set[int]:
    """Return the backends of a pool of two, by holding one while asking for the other."""
    return pool.read(lambda one: {backend(one), pool.read(backend)})


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
    nowhere = Database("host=127.0.0.1 port=1 dbname=none", away)
    nowhere.open()
    with pytest.raises(UnavailableError) as caught:
        nowhere.read(backend)
    assert type(caught.value) is UnavailableError
    nowhere.close()


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
    nowhere = Database("host=127.0.0.1 port=1 dbname=none", msgspec.structs.replace(settings, pool_timeout=2))
    nowhere.open()
    waited = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            nowhere.read(backend)
        waited.append(time.monotonic() - started)
    assert max(waited[1:]) < waited[0] / 2
    nowhere.close()


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


class View:
    """A view whose columns can be changed while it is read, as a migration may."""

    def __init__(self, connection: psycopg.Connection, organization: Organization) -> None:
        self._connection = connection
        self._name = f"probe_{organization.id.hex}"
        self._columns = 0
        self.statement: Any = f"select * from {self._name}"
        self.change()
        connection.execute(f"grant select on {self._name} to public".encode())

    def change(self) -> None:
        self._columns += 1
        columns = ", ".join(f"{number} as c{number}" for number in range(self._columns))
        self._connection.execute(f"create or replace view {self._name} as select {columns}".encode())

    def changes_twice_within_a_read(self, database: Database) -> tuple[Any, ...] | None:
        """Read it, and change it at each of the first two tries, once its statement has been prepared."""
        tries = iter([True, True])

        def work(given: Connection) -> tuple[Any, ...] | None:
            given.execute(self.statement)
            if next(tries, False):
                self.change()
            return given.execute(self.statement).fetchone()

        return database.read(work)


def prepared(given: Connection) -> int:
    """Return how many statements about views of a test a connection has prepared."""
    row = given.execute("select count(*) from pg_prepared_statements where statement like '%from probe_%'").fetchone()
    assert row
    return int(row[0])


@pytest.mark.usefixtures("app")
def test_two_schema_changes_within_a_read_cost_no_answer(
    small: Database, connection: psycopg.Connection, organization: Organization, log_lines: LogLines
) -> None:
    assert View(connection, organization).changes_twice_within_a_read(small) == (0, 1, 2)
    (line,) = [line for line in log_lines() if line["event"] == "prepared_statements_given_up"]
    assert "PgBouncer" not in str(line)


def test_statements_are_prepared_again_after_a_while(
    small: Database, connection: psycopg.Connection, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_UNPREPARED_SECONDS", 1.0)
    view = View(connection, organization)
    view.changes_twice_within_a_read(small)

    def is_prepared(given: Connection) -> bool:
        given.execute(view.statement)
        return prepared(given) > 0

    assert not small.read(is_prepared)
    wait_for(lambda: small.read(is_prepared), seconds=10)


def test_a_pool_that_closes_while_a_request_waits_for_a_connection_makes_it_unavailable(settings: Settings) -> None:
    away = Database(
        "host=127.0.0.1 port=1 dbname=none", msgspec.structs.replace(settings, pool_timeout=5, graceful_timeout=60)
    )
    away.open()
    with ThreadPoolExecutor(1) as executor:
        waits = executor.submit(away.read, backend)
        wait_for(lambda: away._turns._lent and away._pool.get_stats().get("requests_waiting"))
        away.close()
        with pytest.raises(UnavailableError):
            waits.result(5)
    with pytest.raises(UnavailableError):
        away.read(backend)


def test_a_read_ends_within_the_time_that_it_is_given(small: Database, connection: psycopg.Connection) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        small.read(lambda given: given.execute("select pg_sleep(5)"), within=0.2)
    assert time.monotonic() - began < 0.45
    assert small.read(backend)


def test_the_service_cannot_write(small: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        small.read(lambda given: given.execute("create table never (id int)"))


def test_an_error_of_the_statement_is_no_outage(small: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        small.read(lambda given: given.execute("select 1 / 0"))
    assert small.read(backend)


def test_a_server_that_is_read_only_takes_no_writes(small: Database) -> None:
    with pytest.raises(UnavailableError) as refused:
        small.change(lambda given: given.execute("create table never (id int)"))
    assert "takes no writes" in refused.value.detail


def test_a_statement_that_the_server_does_not_support_is_no_outage(small: Database) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        small.change(lambda given: given.execute("select id from cases group by id for update"))

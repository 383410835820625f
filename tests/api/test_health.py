"""GET /healthz and /readyz: what a supervisor learns."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo

from cases_service import service
from cases_service.application import create_app
from cases_service.database.migrations import SCHEMA_VERSION, init_db
from cases_service.service import Readiness
from cases_service.settings import Settings
from tests.conftest import LogLines, new_database
from tests.factories import assert_problem
from tests.process.running import wait_for


@pytest.fixture
def empty_database(server_url: str) -> Iterator[str]:
    with new_database(server_url, f"cases_test_{uuid4().hex[:12]}") as url:
        yield url


def test_health_needs_nothing(client: FlaskClient) -> None:
    assert client.get("/healthz").get_json() == {"status": "ok"}


def test_health_answers_to_any_host(client: FlaskClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200
        response = client.post(path, headers={"Host": "10.0.0.7:8000"})
        assert_problem(response, 405, "method_not_allowed")


def test_health_answers_while_there_is_no_database() -> None:
    app = create_app(Settings(database_url="host=127.0.0.1 port=1 dbname=none", pool_timeout=0.1))
    client = app.test_client()
    assert client.get("/healthz").status_code == 200
    response = client.get("/readyz")
    assert_problem(response, 503, "unavailable")
    assert response.headers["Retry-After"] == "1"
    app.extensions["cases_service"].database.close()


def test_a_database_is_ready_once_it_has_the_schema(empty_database: str) -> None:
    app = create_app(Settings(database_url=empty_database))
    database = app.extensions["cases_service"].database
    with pytest.raises(Exception, match="unavailable"):
        Readiness(database).check()
    with psycopg.connect(empty_database, autocommit=True) as connection:
        init_db(connection)
        Readiness(database).check()
        connection.execute("update schema_version set version = %s", [SCHEMA_VERSION - 1])
    with pytest.raises(Exception, match="unavailable"):
        Readiness(database).check()
    database.close()


def test_who_asks_while_another_still_waits_for_the_database_is_told_what_is_known(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(Settings(database_url=empty_database))
    database = app.extensions["cases_service"].database
    monkeypatch.setattr(service, "_READINESS_SECONDS", 0.0)
    with (
        psycopg.connect(empty_database, autocommit=True) as connection,
        psycopg.connect(empty_database) as other,
        ThreadPoolExecutor(1) as executor,
    ):
        init_db(connection)
        readiness = Readiness(database)
        readiness.check()
        other.execute("lock table schema_version in access exclusive mode")
        waits = executor.submit(readiness.check)
        wait_for(lambda: connection.execute("select from pg_locks where not granted").fetchone() is not None)
        readiness.check()
        assert not waits.done()
        other.rollback()
        waits.result()
    database.close()


@contextmanager
def frozen(connection: psycopg.Connection, application_name: str) -> Iterator[None]:
    """Hold the server's processes up that serve an application, as a host does that is out of memory."""
    statement = "select pid from pg_stat_activity where application_name = %s"
    pids = [pid for (pid,) in connection.execute(statement, [application_name])]
    assert pids
    if not Path(f"/proc/{pids[0]}").exists():
        pytest.skip("the server's processes are not on this machine")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_where_postgresql_is_frozen_the_answer_comes_in_a_bounded_time(
    make_client: Callable[..., FlaskClient], service_url: str, connection: psycopg.Connection
) -> None:
    name = f"frozen {uuid4().hex[:8]}"
    client = make_client(database_url=make_conninfo(service_url, application_name=name))
    assert client.get("/readyz").status_code == 200
    time.sleep(service._READINESS_SECONDS)
    with frozen(connection, name):
        began = time.monotonic()
        answer = client.get("/readyz")
        took = time.monotonic() - began
    assert_problem(answer, 503, "unavailable")
    assert took < service._ANSWER_SECONDS + 0.5
    wait_for(lambda: client.get("/readyz").status_code == 200)


def test_an_answer_is_kept_for_a_second(client: FlaskClient, log_lines: LogLines) -> None:
    for _ in range(5):
        assert client.get("/readyz").status_code == 200
    queries = [line["queries"] for line in log_lines()]
    assert len(queries) == 5
    assert sum(queries) <= 1

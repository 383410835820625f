"""The service behind a real PgBouncer in transaction mode, with the configuration that deploy/ has."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from cases_service.application import Application, create_app
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.session_settings import of_service
from cases_service.problems import TimeoutProblemError, UnavailableError
from cases_service.settings import Settings
from tests.factories import Organization, get
from tests.pgbouncer import CONFIGURATION, PgBouncer, behind, make_pgbouncer, needs_pgbouncer
from tests.process.running import COMMAND, environment, wait_for
from tests.swaps import Swaps

__all__ = ["make_pgbouncer"]

BOUND_SECONDS = 5.0
RETURN_SECONDS = 2.0
PATIENT_SECONDS = 5.0
CONNECT_QUERY_BYTES = 500


@pytest.fixture
def pgbouncer(make_pgbouncer: Callable[..., PgBouncer]) -> PgBouncer:
    return make_pgbouncer()


@pytest.fixture
def pooled(settings: Settings, pgbouncer: PgBouncer) -> Settings:
    return behind(pgbouncer, settings)


@pytest.fixture
def database(pooled: Settings) -> Iterator[Database]:
    database = Database(pooled.require_database_url(), pooled)
    database.open()
    yield database
    database.close()


@pytest.fixture
def pooled_app(pooled: Settings) -> Iterator[Application]:
    app = create_app(pooled)
    yield app
    app.close()


def backend(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    assert row
    return int(row[0])


def test_the_configuration_repeats_what_the_service_asks_for_beyond_defaults(
    settings: Settings, connection: psycopg.Connection
) -> None:
    defaults = connection.execute("select lower(name), boot_val from pg_settings").fetchall()
    line = next(line for line in CONFIGURATION.splitlines() if line.startswith("cases = "))
    line = line.replace("''", "'")
    said = dict(re.findall(r"set (\w+) to '?([\w ]+)", line)) | dict(
        re.findall(r"\b(client_encoding|timezone|datestyle)=(\w+)", line)
    )
    assert len(re.findall("connect_query='(.*)'", line)[0]) < CONNECT_QUERY_BYTES
    not_said = of_service(settings).items() - said.items()
    assert said.items() <= of_service(settings).items()
    assert not_said <= set(defaults)


@needs_pgbouncer
def test_a_walk_through_a_pool_of_two_visits_each_case_once(
    pooled_app: Application, organization: Organization
) -> None:
    visitor = organization.visitor(contacts=2)
    expected = [str(case) for case in visitor.cases(9)]
    client = pooled_app.test_client()

    def walk() -> list[str]:
        walked: list[str] = []
        path: str | None = f"{visitor.path}?page_size=2"
        while path:
            answer = get(client, organization, path)
            assert answer.status_code == 200, answer.text
            assert answer.json is not None
            walked += [case["id"] for case in answer.json["results"]]
            path = answer.json["next"]
        return walked

    assert walk() == expected
    assert walk() == expected


@needs_pgbouncer
def test_requests_share_connections_that_change_hands(pooled_app: Application, organization: Organization) -> None:
    visitor = organization.visitor(contacts=2)
    visitor.cases(3)
    paths = [
        visitor.path,
        f"{visitor.path}?ordering=-updated_at",
        f"{visitor.path}?status=Open",
        f"{visitor.path}/summary",
    ]

    def ask(number: int) -> int:
        return get(pooled_app.test_client(), organization, paths[number % len(paths)]).status_code

    with ThreadPoolExecutor(4) as clients:
        assert set(clients.map(ask, range(200))) == {200}


@needs_pgbouncer
def test_every_connection_has_the_session_of_the_service(database: Database, pooled: Settings) -> None:
    names = of_service(pooled)

    def session(connection: Connection) -> tuple[int, dict[str, str]]:
        statement = """
            with held as materialized (select pg_sleep(0.05))
            select pg_backend_pid(), lower(name), setting from held, pg_settings where lower(name) = any(%s)
        """
        rows = connection.execute(statement, [list(names)]).fetchall()
        return rows[0][0], {name: value.partition(",")[0] for _, name, value in rows}

    with ThreadPoolExecutor(4) as readers:
        found = list(readers.map(lambda _: database.read(session), range(8)))
    assert len({pid for pid, _ in found}) == 2
    assert all(values == names for _, values in found)


@needs_pgbouncer
def test_a_connection_without_the_session_is_refused(
    settings: Settings, make_pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooled = behind(make_pgbouncer("set enable_sort to off;", ""), settings)
    database = Database(pooled.require_database_url(), pooled)
    database.open()
    with pytest.raises(UnavailableError):
        database.read(backend)
    database.close()


@needs_pgbouncer
@pytest.mark.parametrize(("dropped", "found"), [("", "ok"), ("set enable_sort to off;", "failure")])
def test_the_doctor_says_whether_the_session_is_what_the_statements_need(
    database_url: str, make_pgbouncer: Callable[..., PgBouncer], dropped: str, found: str
) -> None:
    url = make_pgbouncer(dropped, "").url
    given = {"DATABASE_URL": url, "CASES_ADMIN_DATABASE_URL": database_url, "CASES_STATEMENT_TIMEOUT": "0.5"}
    ran = subprocess.run([COMMAND, "doctor"], check=False, capture_output=True, text=True, env=environment(**given))
    findings = {check: status for status, check in re.findall("^([a-z]+) +([^:]+):", ran.stdout, re.MULTILINE)}
    assert findings["session"] == found
    assert [findings[check] for check in ("database", "schema", "rights", "row security")] == ["ok"] * 4


@needs_pgbouncer
def test_a_slow_statement_is_a_timeout(database: Database) -> None:
    with pytest.raises(TimeoutProblemError):
        database.read(lambda given: given.execute("select pg_sleep(5)"))
    assert database.read(backend)


@needs_pgbouncer
def test_the_service_cannot_write(database: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        database.read(lambda given: given.execute("create table never (id int)"))


@needs_pgbouncer
def test_a_restart_of_pgbouncer_needs_none_of_the_service(
    pooled_app: Application, pgbouncer: PgBouncer, organization: Organization
) -> None:
    visitor = organization.visitor()
    client = pooled_app.test_client()

    def status() -> int:
        began = time.monotonic()
        answer = get(client, organization, visitor.path)
        assert time.monotonic() - began < BOUND_SECONDS
        return answer.status_code

    assert status() == 200
    pgbouncer.stop()
    assert status() == 503
    pgbouncer.start()
    wait_for(lambda: status() == 200, seconds=RETURN_SECONDS)


@needs_pgbouncer
def test_a_cut_connection_behind_pgbouncer_is_replaced(database: Database, connection: psycopg.Connection) -> None:
    cut = database.read(backend)
    connection.execute("select pg_terminate_backend(%s, 5000)", [cut])
    assert database.read(backend) != cut


@needs_pgbouncer
def test_statements_that_pgbouncer_keeps_over_a_migration_cost_no_answer(
    database: Database, connection: psycopg.Connection, organization: Organization
) -> None:
    name = f"probe_{organization.id.hex}"
    statement = f"select * from {name}".encode()
    connection.execute(f"create view {name} as select 1 as a; grant select on {name} to public")
    assert database.read(lambda given: given.execute(statement).fetchone()) == (1,)
    connection.execute(f"create or replace view {name} as select 1 as a, 2 as b")
    for _ in range(8):
        assert database.read(lambda given: given.execute(statement).fetchone()) == (1, 2)


@needs_pgbouncer
def test_hundreds_of_swaps_under_requests_show_nobody_the_others_cases(
    settings: Settings,
    make_pgbouncer: Callable[..., PgBouncer],
    organization: Organization,
    connection: psycopg.Connection,
) -> None:
    # The clients alone keep the machine busy: no request may reach a time-out.
    pooled = behind(make_pgbouncer(seconds=PATIENT_SECONDS), settings, seconds=PATIENT_SECONDS)
    with closing(create_app(pooled)) as app:
        assert Swaps(organization).wrong_answers(app, connection, swaps=500, clients=8) == []


@needs_pgbouncer
def test_without_a_database_behind_it_the_service_is_unavailable_in_a_bounded_time(
    settings: Settings, make_pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooled = behind(make_pgbouncer("host=", "host=/nowhere"), settings)
    database = Database(pooled.require_database_url(), pooled)
    database.open()
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        database.read(backend)
    assert time.monotonic() - began < BOUND_SECONDS
    database.close()

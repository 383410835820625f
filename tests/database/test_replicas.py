"""Cases come from a replica that is not too late, and from the primary while there is none."""

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from werkzeug.test import TestResponse

from cases_service.application import Application, create_app
from cases_service.credentials import administration
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection import Connection, query_count
from cases_service.database.connection_pool import Database
from cases_service.database.migrations import init_db
from cases_service.database.replicas import Replicas, name_of, single_hosts
from cases_service.embedded.server import SERVICE_ROLE, EmbeddedServer
from cases_service.observability import metrics
from cases_service.problems import OverloadedError, UnavailableError
from cases_service.settings import Settings, SettingsError, read_settings
from tests.conftest import LogLines
from tests.documents import block, run
from tests.factories import LONG_AGO, SECRET_KEY, Organization, Visitor, assert_problem, get
from tests.process.embedded_data import url_of
from tests.process.running import COMMAND, environment, wait_for
from tests.replication import ReplicaServer, primary_server, replica_server
from tests.swaps import NAMES, Swaps
from tests.writing import Writer

LATER = LONG_AGO + timedelta(days=1)
RETURN_SECONDS = 2.0


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedServer]:
    with primary_server() as server, psycopg.connect(server.conninfo, autocommit=True) as connection:
        init_db(connection, service_role=SERVICE_ROLE)
        yield server


@pytest.fixture(scope="module")
def replica(primary: EmbeddedServer) -> Iterator[ReplicaServer]:
    with replica_server(primary) as server:
        yield server


@pytest.fixture
def operator(primary: EmbeddedServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(primary.conninfo, autocommit=True) as connection:
        yield connection


@pytest.fixture
def visitor(operator: psycopg.Connection) -> Visitor:
    visitor = Organization(operator, SecretBox([SECRET_KEY])).visitor()
    visitor.cases(3)
    return visitor


@pytest.fixture
def swaps(operator: psycopg.Connection) -> Swaps:
    return Swaps(Organization(operator, SecretBox([SECRET_KEY])))


@pytest.fixture
def make_app(primary: EmbeddedServer, replica: ReplicaServer) -> Iterator[Callable[..., Application]]:
    """Return a function that makes an application with this replica."""
    apps: list[Application] = []

    def make(*, max_lag: float, url: str = url_of(replica.data_dir), pool_size: int | None = None) -> Application:
        given = Settings(database_url=primary.service_conninfo, secret_key=SECRET_KEY, read_database_url=url)
        apps.append(
            create_app(msgspec.structs.replace(given, read_max_lag=max_lag, pool_timeout=0.5, pool_size=pool_size))
        )
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def patient(make_app: Callable[..., Application]) -> Application:
    """An application that reads from the replica, however late that is."""
    app = make_app(max_lag=600)
    wait_for(lambda: reads_from_replica(app))
    return app


@pytest.fixture
def strict(make_app: Callable[..., Application]) -> Application:
    """An application that reads from the replica while that is not a second late."""
    app = make_app(max_lag=1)
    wait_for(lambda: reads_from_replica(app))
    return app


def cases_of(app: Application) -> Replicas:
    cases: Replicas = app.extensions["cases_service"].cases
    return cases


def is_replica(connection: Connection) -> bool:
    row = connection.execute("select pg_is_in_recovery()").fetchone()
    return row == (True,)


def reads_from_replica(app: Application) -> bool:
    return cases_of(app).read(is_replica)


def reads_from_primary(app: Application) -> bool:
    return not reads_from_replica(app)


def workers_that_read(app: Application, replica: ReplicaServer) -> float | None:
    cases_of(app).count()
    return metrics.registry.get_sample_value("cases_replica_workers", {"pool": name_of(url_of(replica.data_dir))})


def seen(client: FlaskClient, visitor: Visitor, **parameters: str) -> list[str]:
    answer = client.get(visitor.path, headers=visitor.organization.headers(), query_string=parameters)
    assert answer.status_code == 200, answer.text
    return [case["id"] for case in answer.json["results"]]  # type: ignore[index]


def shown(answer: TestResponse) -> list[str]:
    assert answer.status_code == 200, answer.text
    assert answer.json is not None
    return [case["id"] for case in answer.json["results"]]


def new_case(visitor: Visitor) -> str:
    return str(visitor.organization.case(visitor.contact_ids[0], LATER))


@contextmanager
def stopped(replica: ReplicaServer) -> Iterator[None]:
    replica.stop()
    try:
        yield
    finally:
        replica.start()


def wait_until_replayed(replica: ReplicaServer, operator: psycopg.Connection) -> None:
    """Wait until the replica has what the primary has."""
    row = operator.execute("select pg_current_wal_insert_lsn()").fetchone()
    assert row
    with psycopg.connect(replica.url, autocommit=True) as connection:
        wait_for(lambda: connection.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone() == (True,))


def test_page_case_and_summary_come_from_the_replica(
    patient: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    wait_until_replayed(replica, operator)
    with replica.paused():
        late = new_case(visitor)
        client = patient.test_client()
        assert late not in seen(client, visitor)
        assert get(client, visitor.organization, f"{visitor.path}/{late}").status_code == 404
        summary = get(client, visitor.organization, f"{visitor.path}/summary")
        assert summary.json is not None
        assert summary.json["total"] == 3
    wait_until_replayed(replica, operator)
    assert late in seen(client, visitor)


def test_a_walk_over_the_replica_visits_each_case_once(
    patient: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    expected = [str(case) for case in visitor.cases(7, step=timedelta(hours=1))]
    wait_until_replayed(replica, operator)
    client, walked, path = patient.test_client(), [], f"{visitor.path}?page_size=2"
    while path:
        answer = get(client, visitor.organization, path)
        assert answer.json is not None
        walked += [case["id"] for case in answer.json["results"]]
        path = answer.json["next"]
    assert len(walked) == len(set(walked)) == 10
    assert set(expected) <= set(walked)


def test_a_request_asks_the_primary_for_two_things_and_the_replica_for_these_and_the_page(
    patient: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    wait_until_replayed(replica, operator)
    counts = []
    for _ in range(2):
        seen(patient.test_client(), visitor)
        counts.append(query_count.value)
    assert counts == [1 + 2 + 3, 2 + 3]


@pytest.mark.parametrize("with_key", [True, False])
def test_external_ids_that_change_hands_do_so_at_once_although_the_replica_is_late(
    patient: Application, replica: ReplicaServer, swaps: Swaps, operator: psycopg.Connection, with_key: bool
) -> None:
    wait_until_replayed(replica, operator)
    client = patient.test_client()
    assert shown(swaps.ask(client, "one")) == [swaps.cases["one"]]
    with replica.paused():
        swaps.swap(operator, with_key=with_key)
        for name in NAMES:
            assert shown(swaps.ask(client, name)) == [swaps.cases[name]]
            assert swaps.ask(client, name, after=f"/{swaps.cases[name]}").status_code == 200
            other = next(case for owner, case in swaps.cases.items() if owner != name)
            assert swaps.ask(client, name, after=f"/{other}").status_code == 404


def test_a_contact_that_is_linked_to_another_visitor_is_so_at_once_although_the_replica_is_late(
    patient: Application, replica: ReplicaServer, swaps: Swaps, operator: psycopg.Connection
) -> None:
    one, other = swaps.visitors.values()
    wait_until_replayed(replica, operator)
    client = patient.test_client()
    assert shown(swaps.ask(client, "one")) == [swaps.cases["one"]]
    with replica.paused():
        swaps.organization.update("contacts", "id", one.contact_ids[0], visitor_id=other.id)
        assert shown(swaps.ask(client, "one")) == []
        assert sorted(shown(swaps.ask(client, "other"))) == sorted(swaps.cases.values())


def test_a_case_that_moves_to_another_contact_does_so_within_the_lag(
    patient: Application, replica: ReplicaServer, swaps: Swaps, operator: psycopg.Connection
) -> None:
    _, other = swaps.visitors.values()
    wait_until_replayed(replica, operator)
    client = patient.test_client()
    with replica.paused():
        swaps.organization.update("cases", "id", UUID(swaps.cases["one"]), contact_id=other.contact_ids[0])
        assert shown(swaps.ask(client, "one")) == [swaps.cases["one"]]
    wait_until_replayed(replica, operator)
    assert shown(swaps.ask(client, "one")) == []


def test_hundreds_of_swaps_under_requests_show_nobody_the_others_cases(
    patient: Application, replica: ReplicaServer, swaps: Swaps, operator: psycopg.Connection
) -> None:
    wait_until_replayed(replica, operator)
    assert swaps.wrong_answers(patient, operator, swaps=500, clients=8) == []


def test_a_revoked_token_and_a_retired_key_hold_at_once_although_the_replica_is_late(
    patient: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    wait_until_replayed(replica, operator)
    organization, client = visitor.organization, patient.test_client()
    with replica.paused():
        administration.retire_key(operator, organization_id=organization.id, key_id=organization.kid)
        answer = get(client, organization, visitor.path)
        assert (answer.status_code, answer.json and answer.json["code"]) == (400, "token_algorithm_not_allowed")
        administration.revoke_token(operator, organization_id=organization.id, token_id=organization.token_id)
        answer = get(client, organization, visitor.path)
        assert (answer.status_code, answer.json and answer.json["code"]) == (401, "api_token_invalid")


def test_the_primary_takes_over_from_a_late_replica_until_it_has_caught_up(
    strict: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    with replica.paused():
        late = new_case(visitor)
        wait_for(lambda: reads_from_primary(strict))
        assert late in seen(strict.test_client(), visitor)
        assert workers_that_read(strict, replica) == 0
    wait_for(lambda: reads_from_replica(strict), seconds=RETURN_SECONDS)
    assert workers_that_read(strict, replica) == 1


def test_what_a_busy_replica_sheds_is_neither_asked_of_the_primary_nor_held_against_the_replica(
    make_app: Callable[..., Application],
) -> None:
    app = make_app(max_lag=600, pool_size=1)
    wait_for(lambda: reads_from_replica(app))
    begun, ended = threading.Event(), threading.Event()

    def occupy(connection: Connection) -> bool:
        begun.set()
        return ended.wait(30) and is_replica(connection)

    with ThreadPoolExecutor(1) as executor:
        busy = executor.submit(cases_of(app).read, occupy)
        try:
            assert begun.wait(10)
            with pytest.raises(OverloadedError):
                reads_from_replica(app)
        finally:
            ended.set()
        assert busy.result() is True
    assert reads_from_replica(app)


def test_a_replica_of_an_idle_primary_is_not_late(strict: Application, replica: ReplicaServer) -> None:
    ended = threading.Event()
    threading.Timer(2.5, ended.set).start()
    while not ended.wait(0.05):
        assert reads_from_replica(strict)


def test_a_replica_that_is_cut_off_from_its_primary_is_late(
    strict: Application, replica: ReplicaServer, operator: psycopg.Connection
) -> None:
    with replica.cut_off():
        wait_for(lambda: operator.execute("select count(*) from pg_stat_replication").fetchone() == (0,))
        operator.execute("create table if not exists something_new ()")
        wait_for(lambda: reads_from_primary(strict))
    wait_for(lambda: reads_from_replica(strict))


def test_the_primary_takes_over_from_a_stopped_replica_until_it_is_back(
    strict: Application, replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection
) -> None:
    client = strict.test_client()
    with stopped(replica):
        for _ in range(5):
            assert len(seen(client, visitor)) == 3
        assert reads_from_primary(strict)
    wait_for(lambda: reads_from_replica(strict), seconds=2 * RETURN_SECONDS)


def test_readiness_is_the_primarys(make_app: Callable[..., Application]) -> None:
    app = make_app(max_lag=5, url="host=127.0.0.1 port=1 dbname=none")
    assert wait_for(lambda: app.test_client().get("/readyz").status_code == 200)


def test_a_replica_that_was_never_there_costs_nothing(make_app: Callable[..., Application], visitor: Visitor) -> None:
    app = make_app(max_lag=5, url="host=127.0.0.1 port=1 dbname=none")
    assert len(seen(app.test_client(), visitor)) == 3


def test_a_server_that_is_no_replica_is_left_alone(
    make_app: Callable[..., Application], primary: EmbeddedServer, visitor: Visitor
) -> None:
    app = make_app(max_lag=5, url=primary.service_conninfo)
    (server,) = cases_of(app)._replicas
    wait_for(lambda: server._answers)
    assert not server.is_ready
    assert len(seen(app.test_client(), visitor)) == 3


def test_reads_go_round_the_replicas_that_answer(
    make_app: Callable[..., Application], replica: ReplicaServer, primary: EmbeddedServer
) -> None:
    """The second of the three is down and the third is no replica."""
    hosts = [conninfo_to_dict(url)["host"] for url in (replica.url, "host=/nowhere", primary.conninfo)]
    url = f"host={','.join(map(str, hosts))} port=5432 user={SERVICE_ROLE} dbname=cases"
    app = make_app(max_lag=5, url=url)
    wait_for(lambda: reads_from_replica(app))
    assert all(reads_from_replica(app) for _ in range(6))


def test_a_standby_in_the_place_of_the_primary_is_refused(
    replica: ReplicaServer, visitor: Visitor, operator: psycopg.Connection, log_lines: LogLines
) -> None:
    """It would go on to accept what was revoked on the primary."""
    settings = Settings(database_url=url_of(replica.data_dir), secret_key=SECRET_KEY, pool_timeout=0.5)
    wait_until_replayed(replica, operator)
    app = create_app(settings)
    client = app.test_client()
    assert_problem(get(client, visitor.organization, visitor.path), 503, "unavailable")
    assert client.get("/readyz").status_code == 503
    app.close()
    assert "server_in_recovery" in [line["event"] for line in log_lines()]


@pytest.mark.parametrize("attributes", [None, "any", "primary"])
def test_of_two_hosts_the_primary_is_found_and_what_was_revoked_there_holds(
    primary: EmbeddedServer,
    replica: ReplicaServer,
    visitor: Visitor,
    operator: psycopg.Connection,
    attributes: str | None,
) -> None:
    """The first of the two is a standby that does not know it."""
    organization = visitor.organization
    wait_until_replayed(replica, operator)
    hosts = ",".join(str(conninfo_to_dict(url)["host"]) for url in (url_of(replica.data_dir), primary.service_conninfo))
    url = make_conninfo(primary.service_conninfo, host=hosts, port="5432,5432", target_session_attrs=attributes)
    with replica.paused():
        administration.revoke_token(operator, organization_id=organization.id, token_id=organization.token_id)
        app = create_app(Settings(database_url=url, secret_key=SECRET_KEY))
        client = app.test_client()
        assert_problem(get(client, organization, visitor.path), 401, "api_token_invalid")
        assert client.get("/readyz").status_code == 200
        app.close()


@pytest.mark.parametrize("command", [["list-tokens", "--organization", str(UUID(int=1))], ["load", "-"], ["init-db"]])
def test_a_command_says_that_it_was_led_to_a_standby(
    replica: ReplicaServer, primary: EmbeddedServer, command: list[str]
) -> None:
    given = {"DATABASE_URL": url_of(replica.data_dir), "CASES_ADMIN_DATABASE_URL": replica.url}
    ran = subprocess.run(
        [COMMAND, *command], check=False, capture_output=True, text=True, input="", env=environment(**given)
    )
    assert ran.returncode == 1
    assert "is a standby" in ran.stderr
    hosts = ",".join(str(conninfo_to_dict(url)["host"]) for url in (replica.url, primary.conninfo))
    given["CASES_ADMIN_DATABASE_URL"] = make_conninfo(primary.conninfo, host=hosts, port="5432,5432")
    ran = subprocess.run(
        [COMMAND, *command], check=False, capture_output=True, text=True, input="", env=environment(**given)
    )
    assert "is a standby" not in ran.stderr


def test_the_doctor_says_that_database_url_leads_to_a_standby(replica: ReplicaServer) -> None:
    given = {"DATABASE_URL": url_of(replica.data_dir), "CASES_ADMIN_DATABASE_URL": replica.url}
    ran = subprocess.run([COMMAND, "doctor"], check=False, capture_output=True, text=True, env=environment(**given))
    assert ran.returncode == 1
    found = dict(re.findall("^failure +([^:]+): (.*)$", ran.stdout, re.MULTILINE))
    assert "is a standby" in found["database"]
    assert "is a standby" in found["administration"]


def test_what_recovery_stands_in_the_way_of_is_read_from_the_primary(
    patient: Application, replica: ReplicaServer, operator: psycopg.Connection
) -> None:
    operator.execute("create table if not exists probe (id int); grant select on probe to public")
    operator.execute("insert into probe values (1)")
    wait_until_replayed(replica, operator)
    tries: list[bool] = []

    def work(connection: Connection) -> bool:
        tries.append(is_replica(connection))
        if tries[-1]:
            connection.execute("select pg_sleep(4) from probe")
        return tries[-1]

    with ThreadPoolExecutor() as other, psycopg.connect(replica.url, autocommit=True) as observer:
        result = other.submit(cases_of(patient).read, work)
        wait_for(lambda: observer.execute("select from pg_stat_activity where wait_event = 'PgSleep'").rowcount)
        operator.execute("truncate probe")
        assert result.result() is False
    assert tries == [True, False]
    wait_for(lambda: reads_from_replica(patient), seconds=RETURN_SECONDS)


def test_a_uri_with_several_hosts_is_taken_apart() -> None:
    assert [conninfo_to_dict(url) for url in single_hosts("postgresql://a:1,b:2/cases?user=me")] == [
        {"host": "a", "port": "1", "dbname": "cases", "user": "me"},
        {"host": "b", "port": "2", "dbname": "cases", "user": "me"},
    ]
    assert [conninfo_to_dict(url).get("port") for url in single_hosts("host=a,b port=7")] == ["7", "7"]
    assert [conninfo_to_dict(url) for url in single_hosts("dbname=cases")] == [{"dbname": "cases"}]
    assert single_hosts(None) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"CASES_READ_DATABASE_URL": "host=replica"},
        {"DATABASE_URL": "host=primary", "CASES_READ_DATABASE_URL": "host=a,b,c port=1,2"},
        {"DATABASE_URL": "host=primary", "CASES_READ_DATABASE_URL": "host=a port=secret"},
    ],
)
def test_replicas_that_cannot_be_meant_end_the_start(environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^CASES_READ_DATABASE_URL: ") as caught:
        read_settings(environment)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "CASES_ADMIN_DATABASE_URL"])
@pytest.mark.parametrize("attributes", ["standby", "prefer-standby", "read-only", "read-write"])
def test_a_standby_that_is_asked_for_in_the_place_of_the_primary_ends_the_start(variable: str, attributes: str) -> None:
    given = {"DATABASE_URL": "host=a,b", variable: f"host=a,b target_session_attrs={attributes}"}
    with pytest.raises(SettingsError, match=f"^{variable}: .* expected primary"):
        read_settings(given)


def test_the_document_names_two_replicas(tmp_path: Path) -> None:
    said = run(f"{block('docs/scaling.md', 'sh', 'CASES_READ_DATABASE_URL')}echo $CASES_READ_DATABASE_URL", tmp_path)
    settings = read_settings({"DATABASE_URL": "host=primary", "CASES_READ_DATABASE_URL": said.strip()})
    hosts = [conninfo_to_dict(url)["host"] for url in single_hosts(settings.read_database_url)]
    assert hosts == ["replica-1", "replica-2"]


@pytest.fixture
def writer_of(
    make_app: Callable[..., Application], primary: EmbeddedServer, operator: psycopg.Connection
) -> Iterator[Callable[[str], Writer]]:
    """Return a function that gives a writer whose service has a replica, and writes to this database."""
    apps: list[Application] = []

    def make(url: str) -> Writer:
        settings = make_app(max_lag=60).extensions["cases_service"].settings
        apps.append(create_app(msgspec.structs.replace(settings, write_database_url=url)))
        return Writer(apps[-1].test_client(), Organization(operator, SecretBox([SECRET_KEY])))

    yield make
    for app in apps:
        app.close()


def test_what_was_written_is_there_in_the_next_request_however_late_a_replica_is(
    writer_of: Callable[[str], Writer], primary: EmbeddedServer, replica: ReplicaServer
) -> None:
    writer = writer_of(primary.conninfo)
    with replica.paused():
        case = writer.create()
        assert writer.get(case["id"]).get_json() == case
        assert writer.patch(case, priority=1)["priority"] == writer.get(case["id"]).get_json()["priority"]


def test_a_server_that_takes_no_writes_is_unavailable_to_them(
    writer_of: Callable[[str], Writer], replica: ReplicaServer
) -> None:
    """As the one that a failover has left behind."""
    writer = writer_of(replica.url)
    case_id = writer.organization.case(None)
    for method, body in (("PATCH", {"priority": 1}), ("DELETE", None)):
        assert_problem(writer.send(method, case_id, body), 503, "unavailable")
    assert writer.get(case_id).status_code == 200


def test_a_standby_to_which_a_pooler_leads_is_unavailable_to_writes(make_app: Callable[..., Application]) -> None:
    """Connections to it are let through here, as a pooler lets through those that it had before."""
    settings = make_app(max_lag=60).extensions["cases_service"].settings
    pool = Database(settings.read_database_url, settings, may_follow=True)
    pool.open()
    try:
        with pytest.raises(UnavailableError) as refused:
            pool.change(lambda connection: connection.write(uuid4()))
        assert "takes no writes" in refused.value.detail
    finally:
        pool.close()

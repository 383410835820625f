"""`cases-service doctor`: what it says of installations that are well, and of those that are not."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from psycopg.conninfo import make_conninfo

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import SCHEMA_VERSION, init_db
from tests.conftest import new_database
from tests.factories import SECRET_KEY, Organization, b64
from tests.process.conftest import data_dir, place, serve, start, template  # noqa: F401  fixtures
from tests.process.running import COMMAND, LOOPBACK, Service, environment
from tests.redis_server import needs_redis, redis_server
from tests.replication import ReplicaServer, data_directory, primary_server

PASSWORD = "hunter2"
OTHER_KEY = b64(b"o" * 32) + "="
NOWHERE = f"{LOOPBACK}:1"
SOON = datetime.now(UTC) + timedelta(days=3)
LATER = datetime.now(UTC) + timedelta(days=300)
CHECKS = [
    "settings", "database", "session", "clock", "session of commands", "administration", "schema", "rights",
    "row security", "statistics", "signing keys", "stored secrets", "API tokens", "feeds", "rate limits", "open files",
    "/healthz", "/readyz",
]  # fmt: skip


class Installation(NamedTuple):
    """A database of its own, and the variables of who operates a service on it."""

    variables: dict[str, str]
    connection: psycopg.Connection

    @property
    def admin_url(self) -> str:
        return self.variables["CASES_ADMIN_DATABASE_URL"]

    def organization(self) -> Organization:
        return Organization(self.connection, SecretBox([SECRET_KEY]))


class Report(NamedTuple):
    """What was said of each check: its status and message."""

    status: int
    findings: dict[str, tuple[str, str]]
    err: str

    def problems(self) -> dict[str, str]:
        return {check: status for check, (status, _) in self.findings.items() if status != "ok"}


def variables_of(url: str, service_role: str) -> dict[str, str]:
    return {
        "DATABASE_URL": make_conninfo(url, user=service_role, password=PASSWORD),
        "CASES_ADMIN_DATABASE_URL": make_conninfo(url, password=PASSWORD),
        "CASES_SECRET_KEY": SECRET_KEY,
        "CASES_BIND": NOWHERE,
    }


def let_somebody_in(connection: psycopg.Connection) -> None:
    """Make an organization with a token, and a key that has no secret."""
    organization = Organization(connection, SecretBox([SECRET_KEY]))
    connection.execute("delete from signing_keys")
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    organization.public_key("EdDSA", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.fixture
def installation(server_url: str, service_role: str) -> Iterator[Installation]:
    with (
        new_database(server_url, f"doctor_{uuid4().hex[:12]}") as url,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        init_db(connection, service_role=service_role)
        let_somebody_in(connection)
        yield Installation(variables_of(url, service_role), connection)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [COMMAND, "doctor", *arguments], check=False, capture_output=True, text=True, env=environment(**variables)
    )
    for secret in (PASSWORD, SECRET_KEY, OTHER_KEY):
        assert secret not in ran.stdout + ran.stderr
    return ran


def diagnose(variables: dict[str, str], *arguments: str, **changes: str) -> Report:
    """Run it for a person, and check that each line has its form, and that the status is what the lines say."""
    ran = run(*arguments, **(variables | changes))
    lines = [re.fullmatch(r"(ok|warning|failure) +([^:]+(?::\d+)?): (.+)", line) for line in ran.stdout.splitlines()]
    assert all(lines), ran
    findings = {line[2]: (line[1], line[3]) for line in lines if line}
    assert len(findings) == len(lines)
    failed = [check for check, (status, _) in findings.items() if status == "failure"]
    assert ran.returncode == bool(failed)
    said = f"{len(failed)} check{'s' * (len(failed) > 1)} failed: {', '.join(failed)}"
    assert ran.stderr == (f"cases-service: {said}\n" if failed else "")
    return Report(ran.returncode, findings, ran.stderr)


def test_a_healthy_installation_has_no_problem(installation: Installation) -> None:
    organization = installation.organization()
    organization.key("HS512")
    report = diagnose(installation.variables)
    assert report.problems() == {}
    assert set(report.findings) == set(CHECKS)
    assert report.findings["stored secrets"] == ("ok", "2 can be opened")
    assert "nobody listens at http://127.0.0.1:1" in report.findings["/readyz"][1]


def test_an_installation_that_lets_nobody_in_is_warned_of(installation: Installation) -> None:
    installation.connection.execute("update api_tokens set revoked_at = now()")
    report = diagnose(installation.variables)
    assert report.problems() == {"API tokens": "warning"}
    assert "create-token" in report.findings["API tokens"][1]
    installation.connection.execute("update signing_keys set retired_at = now()")
    report = diagnose(installation.variables)
    assert report.problems() == {"API tokens": "warning", "signing keys": "warning"}
    assert "create-key" in report.findings["signing keys"][1]


def test_a_feed_that_stopped_is_warned_of(installation: Installation) -> None:
    organization = installation.organization()
    organization.key("HS512")
    for minutes in range(60, 80):
        organization.import_run(datetime.now(UTC) - timedelta(minutes=minutes))
    report = diagnose(installation.variables)
    assert report.problems() == {"feeds": "warning"}
    assert f"organization {organization.id}, last at " in report.findings["feeds"][1]
    assert ", every 60 s before" in report.findings["feeds"][1]


def test_a_program_reads_the_same_as_json(installation: Installation) -> None:
    said = diagnose(installation.variables, CASES_WORKER="3")
    ran = run("--json", **installation.variables, CASES_WORKER="3")
    rows = json.loads(ran.stdout)
    assert {row["check"]: (row["status"], row["message"]) for row in rows} == said.findings
    assert all(set(row) == {"check", "status", "message"} for row in rows)


def test_a_failure_is_json_too_and_a_line_on_standard_error() -> None:
    ran = run("--json", DATABASE_URL=f"postgresql://cases:{PASSWORD}@{NOWHERE}/cases", CASES_BIND=NOWHERE)
    assert (ran.returncode, ran.stderr) == (1, "cases-service: 1 check failed: database\n")
    assert [row["check"] for row in json.loads(ran.stdout) if row["status"] == "failure"] == ["database"]


def test_a_wrong_setting_is_named(installation: Installation) -> None:
    report = diagnose(installation.variables, CASES_THREADS="many")
    assert list(report.findings) == ["settings"]
    assert report.findings["settings"][1].startswith("CASES_THREADS: ")


def test_a_misspelt_setting_is_a_warning(installation: Installation) -> None:
    report = diagnose(installation.variables, CASES_WORKER="3")
    assert report.problems() == {"settings": "warning"}
    assert "CASES_WORKER" in report.findings["settings"][1]


def test_without_any_database_none_is_made(tmp_path: Path) -> None:
    report = diagnose({}, CASES_DATA_DIR=str(tmp_path / "data"), CASES_BIND=NOWHERE)
    assert report.problems() == {"database": "failure"}
    assert "set DATABASE_URL, or run cases-service init-db" in report.findings["database"][1]
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_database_is_healthy(data_dir: Path) -> None:  # noqa: F811  the fixture
    report = diagnose({}, CASES_DATA_DIR=str(data_dir), CASES_SECRET_KEY=SECRET_KEY, CASES_BIND=NOWHERE)
    assert report.problems() == {}
    assert set(report.findings) == {*CHECKS, "writer"}


def test_a_database_that_is_away_is_a_failure(installation: Installation) -> None:
    url = f"postgresql://cases:{PASSWORD}@{NOWHERE}/cases"
    report = diagnose(installation.variables, DATABASE_URL=url)
    assert report.problems() == {"database": "failure"}
    assert re.search("cannot reach the database: .*refused.*; check DATABASE_URL", report.findings["database"][1])


def test_a_role_of_the_commands_that_cannot_enter_is_a_failure(installation: Installation) -> None:
    url = make_conninfo(installation.admin_url, user="nobody_at_all")
    report = diagnose(installation.variables, CASES_ADMIN_DATABASE_URL=url)
    assert report.problems() == {"administration": "failure"}
    assert "check CASES_ADMIN_DATABASE_URL" in report.findings["administration"][1]


def test_a_database_of_another_encoding_is_a_failure(installation: Installation, server_url: str) -> None:
    name = f"doctor_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create database {name} template template0 encoding 'LATIN1' locale 'C'".encode())
        try:
            url = make_conninfo(server_url, dbname=name)
            report = diagnose(installation.variables, DATABASE_URL=url, CASES_ADMIN_DATABASE_URL=url)
        finally:
            server.execute(f"drop database {name} with (force)".encode())
    assert report.problems() == {"database": "failure", "schema": "failure"}
    assert "LATIN1" in report.findings["database"][1]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            f"update schema_version set version = {SCHEMA_VERSION - 1}",
            f"needs {SCHEMA_VERSION}: run cases-service init",
        ),
        ("drop table schema_version", "there is none: run cases-service init-db"),
    ],
)
def test_an_old_schema_and_none_are_failures(installation: Installation, statement: str, message: str) -> None:
    installation.connection.execute(statement.encode())
    report = diagnose(installation.variables)
    assert report.problems() == {"schema": "failure"}
    assert message in report.findings["schema"][1]


@pytest.mark.parametrize(("seconds", "direction"), [(60, "ahead of"), (-60, "behind")])
def test_a_clock_that_differs_is_a_warning(
    installation: Installation, service_role: str, seconds: int, direction: str
) -> None:
    installation.connection.execute("create schema ahead")
    installation.connection.execute(f"""
        create function ahead.clock_timestamp() returns timestamptz language sql
        as 'select pg_catalog.clock_timestamp() + {seconds} * interval ''1 second'''
    """)
    installation.connection.execute(f"grant usage on schema ahead to {service_role}".encode())
    url = make_conninfo(installation.variables["DATABASE_URL"], options="-c search_path=ahead,pg_catalog,public")
    report = diagnose(installation.variables, DATABASE_URL=url)
    assert report.problems() == {"clock": "warning"}
    assert re.search(rf"the database's is (59|60)\.\d s {direction} this machine's", report.findings["clock"][1])


def test_a_superuser_that_serves_is_a_warning(installation: Installation) -> None:
    report = diagnose(installation.variables, DATABASE_URL=installation.admin_url)
    assert report.problems() == {"row security": "warning"}
    assert "is a superuser: serve with another role" in report.findings["row security"][1]


def test_a_role_that_bypasses_row_security_is_a_warning(installation: Installation, service_role: str) -> None:
    installation.connection.execute(f"alter role {service_role} bypassrls".encode())
    try:
        report = diagnose(installation.variables)
    finally:
        installation.connection.execute(f"alter role {service_role} nobypassrls".encode())
    assert report.problems() == {"row security": "warning"}
    assert "has BYPASSRLS" in report.findings["row security"][1]


@pytest.mark.parametrize(
    ("right", "status"),
    [
        ("select on cases", "failure"),
        ("select on case_funnel_stages", "failure"),
        ("update (last_used_at) on signing_keys", "warning"),
    ],
)
def test_a_right_that_is_missing_is_named(
    installation: Installation, service_role: str, right: str, status: str
) -> None:
    installation.connection.execute(f"revoke {right} from {service_role}".encode())
    report = diagnose(installation.variables)
    assert report.problems() == {"rights": status}
    assert f"lacks {right}: run cases-service init-db" in report.findings["rights"][1]


def test_without_the_rights_to_see_them_keys_are_not_called_healthy(installation: Installation) -> None:
    variables = {name: value for name, value in installation.variables.items() if name != "CASES_ADMIN_DATABASE_URL"}
    report = diagnose(variables)
    assert report.problems() == {"administration": "warning"}
    assert set(CHECKS) - set(report.findings) == {"signing keys", "stored secrets", "API tokens", "feeds"}


def test_an_owner_that_is_no_superuser_sees_every_organization(installation: Installation, service_role: str) -> None:
    owner = f"owner_{uuid4().hex[:12]}"
    database = installation.connection.info.dbname
    with psycopg.connect(installation.admin_url, autocommit=True) as superuser:
        superuser.execute(f"drop schema public cascade; create role {owner} login; create schema public".encode())
        superuser.execute(f"alter schema public owner to {owner}; alter database {database} owner to {owner}".encode())
        try:
            url = make_conninfo(installation.admin_url, user=owner)
            with psycopg.connect(url, autocommit=True) as connection:
                init_db(connection)
            Organization(superuser, SecretBox([OTHER_KEY]))
            variables = {"DATABASE_URL": url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_BIND": NOWHERE}
            report = diagnose(variables)
        finally:
            superuser.execute(f"drop owned by {owner} cascade".encode())
            superuser.execute(f"alter database {database} owner to current_user; drop role {owner}".encode())
    assert report.problems() == {"stored secrets": "failure"}


@pytest.mark.parametrize(
    ("configured", "message"), [(OTHER_KEY, "opens with none of the keys in CASES_SECRET_KEY"), ("", "needs CASES_")]
)
def test_a_secret_that_no_key_opens_is_a_failure(installation: Installation, configured: str, message: str) -> None:
    organization = installation.organization()
    report = diagnose(installation.variables, CASES_SECRET_KEY=configured)
    assert report.problems() == {"stored secrets": "failure"}
    assert f"{organization.kid} of organization {organization.id} {message}" in report.findings["stored secrets"][1]
    both = diagnose(installation.variables, CASES_SECRET_KEY=f"{OTHER_KEY},{SECRET_KEY}")
    assert both.problems() == {}


def test_a_key_about_to_retire_is_a_warning(installation: Installation) -> None:
    organization = installation.organization()
    organization.update("signing_keys", "id", organization.kid, retired_at=SOON)
    report = diagnose(installation.variables)
    assert report.problems() == {"signing keys": "warning"}
    assert f"about to retire: {organization.kid} of" in report.findings["signing keys"][1]
    assert f"create-key for organization {organization.id}" in report.findings["signing keys"][1]

    organization.key()
    message = diagnose(installation.variables).findings["signing keys"][1]
    assert "list-keys" in message
    assert "create-key" not in message


def test_a_token_about_to_expire_is_a_warning(installation: Installation) -> None:
    organization = installation.organization()
    organization.update("api_tokens", "id", organization.token_id, expires_at=SOON)
    report = diagnose(installation.variables)
    assert report.problems() == {"API tokens": "warning"}
    assert (
        f"about to expire: {organization.token_id} of organization {organization.id}"
        in report.findings["API tokens"][1]
    )


def test_what_ends_much_later_or_has_ended_is_no_problem(installation: Installation) -> None:
    organization = installation.organization()
    organization.update("api_tokens", "id", organization.token_id, expires_at=LATER)
    organization.update("signing_keys", "id", organization.kid, retired_at=LATER)
    ended = Organization(installation.connection, SecretBox([OTHER_KEY]))
    past = datetime.now(UTC) - timedelta(days=1)
    ended.update("api_tokens", "id", ended.token_id, expires_at=SOON, revoked_at=past)
    ended.update("signing_keys", "id", ended.kid, retired_at=past)
    assert diagnose(installation.variables).problems() == {}


def test_many_are_counted_and_a_few_named(installation: Installation) -> None:
    for _ in range(5):
        organization = installation.organization()
        organization.update("signing_keys", "id", organization.kid, retired_at=SOON)
    message = diagnose(installation.variables).findings["signing keys"][1]
    assert message.count("and 2 more") == 2


def test_a_running_service_is_asked(
    installation: Installation,
    serve: Callable[..., Service],  # noqa: F811  the fixture
) -> None:
    service_url = {name: installation.variables[name] for name in ("DATABASE_URL", "CASES_SECRET_KEY")}
    service = serve(**service_url, CASES_ADMIN_BIND=f"{LOOPBACK}:0")
    service.curl("/healthz")
    bind, operation = f"{LOOPBACK}:{service.port}", f"{LOOPBACK}:{service.admin_port}"
    report = diagnose(installation.variables, CASES_BIND=bind, CASES_ADMIN_BIND=operation)
    assert report.problems() == {}
    assert report.findings["/healthz"] == ("ok", f"200 from http://{bind}")
    assert report.findings["/readyz"] == ("ok", f"200 from http://{operation}")

    # To clients /readyz is not there.
    report = diagnose(installation.variables, "--url", f"http://{bind}/")
    assert report.problems() == {"/readyz": "warning"}

    installation.connection.execute(f"update schema_version set version = {SCHEMA_VERSION - 1}".encode())
    time.sleep(1)  # A worker keeps its last result that long.
    report = diagnose(installation.variables, "--url", f"http://{operation}")
    assert report.problems() == {"schema": "failure", "/readyz": "failure"}
    assert "503 unavailable" in report.findings["/readyz"][1]


@needs_redis
def test_a_redis_that_does_not_count_is_a_failure(installation: Installation) -> None:
    def said(url: str) -> tuple[str, str]:
        limits = {"CASES_RATE_LIMIT_TOKEN": "9/minute", "CASES_RATE_LIMIT_STORAGE": url}
        report = diagnose(installation.variables, **limits)
        assert set(report.problems()) <= {"rate limits"}
        return report.findings["rate limits"]

    assert said("memory://")[0] == "ok"
    with redis_server() as redis:
        assert said(redis.url) == ("ok", "Redis counts for all workers")
        assert redis.client.keys() == []
        status, message = said(redis.url.replace(redis.password, PASSWORD))
        assert status == "failure"
        assert "invalid username-password pair" in message
        redis.client.acl_setuser("reader", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+ping"])
        assert "no permissions" in said(f"redis://reader:{PASSWORD}@{LOOPBACK}:{redis.port}")[1]
        redis.stop()
        status, message = said(redis.url)
        assert status == "failure"
        assert re.search("refused.*; check CASES_RATE_LIMIT_STORAGE", message)
        assert redis.password not in message


def test_nobody_at_a_given_address_is_a_failure(installation: Installation) -> None:
    report = diagnose(installation.variables, "--url", f"http://{NOWHERE}")
    assert report.problems() == {"/healthz": "failure", "/readyz": "failure"}
    assert "start cases-service serve" in report.findings["/healthz"][1]


def test_somebody_else_at_the_address_is_a_failure(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "healthz").write_text("hello")
    with ThreadingHTTPServer((LOOPBACK, 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        report = diagnose(installation.variables, CASES_BIND=f"{LOOPBACK}:{other.server_port}")
        other.shutdown()
    assert report.problems()["/healthz"] == "failure"
    assert "no answer of this service" in report.findings["/healthz"][1]


@pytest.mark.parametrize("url", ["ftp://a", "http://", f"http://me:{PASSWORD}@a", "http://a?b", "http://a:b", "a"])
def test_a_wrong_address_is_a_wrong_call(url: str) -> None:
    ran = run("--url", url)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "'--url': " in ran.stderr


def test_replicas_are_looked_at(service_role: str) -> None:
    with primary_server() as primary:
        with psycopg.connect(primary.conninfo, autocommit=True) as connection:
            connection.execute(f"create role {service_role} login".encode())
            init_db(connection, service_role=service_role)
            let_somebody_in(connection)
        variables = variables_of(primary.conninfo, service_role)
        with data_directory() as data_dir, ReplicaServer(primary, data_dir) as replica:
            url = make_conninfo(replica.url, user=service_role, password=PASSWORD)
            report = diagnose(variables, CASES_READ_DATABASE_URL=url)
            assert report.problems() == {}
            (name,) = (check for check in report.findings if check.startswith("replica "))

            replica.execute("select pg_wal_replay_pause()")
            with psycopg.connect(primary.conninfo, autocommit=True) as connection:
                connection.execute("create table something ()")
            report = diagnose(variables, CASES_READ_DATABASE_URL=url, CASES_READ_MAX_LAG="0.5")
            assert report.problems() == {name: "warning"}
            assert "later than CASES_READ_MAX_LAG" in report.findings[name][1]

            replica.stop()
            report = diagnose(variables, CASES_READ_DATABASE_URL=url)
            assert report.problems() == {name: "warning"}
            assert "the primary answers in its place" in report.findings[name][1]
        report = diagnose(variables, CASES_READ_DATABASE_URL=variables["DATABASE_URL"])
        assert list(report.problems().values()) == ["warning"]


def test_what_requests_that_write_lack_is_named_until_init_db_gives_it(
    installation: Installation, writer_role: str
) -> None:
    writer = {"CASES_WRITE_DATABASE_URL": make_conninfo(installation.admin_url, user=writer_role, password=writer_role)}
    report = diagnose(installation.variables, **writer)
    assert report.problems() == {"writer": "failure"}
    assert "and 15 more: run cases-service init-db with CASES_WRITE_DATABASE_URL" in report.findings["writer"][1]
    init_db(installation.connection, writer_role=writer_role)
    assert diagnose(installation.variables, **writer).problems() == {}


def test_a_way_to_write_past_row_security_is_warned_of(installation: Installation) -> None:
    report = diagnose(installation.variables, CASES_WRITE_DATABASE_URL=installation.admin_url)
    assert report.problems() == {"writer": "warning"}

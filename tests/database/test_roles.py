"""Roles: what init-db lets each of them do, with three of them and with one for everything."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.application import create_app
from cases_service.credentials import administration
from cases_service.credentials.administration import KnownKey, KnownToken
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database import migrations
from cases_service.database.migrations import SchemaError
from cases_service.demo.demo import DEMO_DATA
from cases_service.embedded.command_database import CommandDatabase
from cases_service.embedded.server import _find_programs
from cases_service.loading.files import LoadFile
from cases_service.loading.load import load
from cases_service.settings import Settings, SettingsError, environment_of
from tests.documents import block, run
from tests.factories import SECRET_KEY, Organization, get
from tests.loading.test_loading import Company, removal
from tests.process.running import COMMAND, environment, wait_for

ROLES = (Path(__file__).parents[2] / "deploy/roles.sql").read_text()
BOX = SecretBox([SECRET_KEY])


class Roles(NamedTuple):
    """A database of its own with the roles of deploy/roles.sql, each under another name."""

    database: str
    owner: str
    admin: str
    service: str
    writer: str
    superuser_url: str

    def url(self, role: str) -> str:
        return make_conninfo(self.superuser_url, user=role, password="secret")

    @property
    def settings(self) -> Settings:
        return Settings(
            database_url=self.url(self.service), admin_database_url=self.url(self.admin), secret_key=SECRET_KEY
        )

    @property
    def writing_settings(self) -> Settings:
        return msgspec.structs.replace(self.settings, write_database_url=self.url(self.writer))

    @property
    def plain_settings(self) -> Settings:
        return Settings(database_url=self.url(self.admin), secret_key=SECRET_KEY)


def psql(url: str, text: str) -> None:
    passwords = dict.fromkeys(("ADMIN_PASSWORD", "SERVICE_PASSWORD", "WRITER_PASSWORD"), "secret")
    environment = {**os.environ, **passwords}
    command = [str(_find_programs(None) / "psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", url]
    subprocess.run(command, input=text, env=environment, check=True, text=True)


@pytest.fixture
def make_roles(server_url: str) -> Iterator[Callable[[str], Roles]]:
    """Return a function that runs a script of SQL, with names of its own for `cases` and `cases_…`."""
    made: list[Roles] = []

    def make(script: str) -> Roles:
        name = f"c{uuid4().hex[:12]}"
        psql(server_url, script.replace("cases", name))
        url = make_conninfo(server_url, dbname=name)
        made.append(Roles(name, f"{name}_owner", f"{name}_admin", f"{name}_service", f"{name}_writer", url))
        return made[-1]

    with psycopg.connect(server_url, autocommit=True) as server:
        yield make
        for roles in made:
            server.execute(f"drop database {roles.database} with (force)".encode())
            for role in (roles.writer, roles.service, roles.admin, roles.owner):
                server.execute(f"drop role if exists {role}".encode())


@pytest.fixture
def roles(make_roles: Callable[[str], Roles]) -> Roles:
    return make_roles(ROLES)


@pytest.fixture
def plain(make_roles: Callable[[str], Roles]) -> Roles:
    """One ordinary role that owns the database, and neither makes roles nor bypasses anything."""
    return make_roles(
        "create role cases_admin login password 'secret'; create database cases owner cases_admin encoding 'UTF8'"
        " template template0"
    )


def test_init_db_may_be_repeated_by_the_role_that_administers(roles: Roles) -> None:
    for _ in range(2):
        CommandDatabase(roles.settings, None).initialize()
    with psycopg.connect(roles.superuser_url) as connection:
        owners = connection.execute(
            "select distinct relowner::regrole::text from pg_class where relnamespace = 'public'::regnamespace"
        ).fetchall()
        policies = connection.execute(
            "select distinct roles::text[] from pg_policies where policyname = 'administration'"
        ).fetchall()
    assert owners == [(roles.owner,)]
    assert policies == [([roles.admin, roles.owner],)]


def test_the_lines_of_the_document_make_the_roles_and_what_they_need(
    make_roles: Callable[[str], Roles], tmp_path: Path
) -> None:
    roles = make_roles(block("docs/security.md", "sql", "create role cases_owner").replace("…", "secret"))
    lines = block("docs/security.md", "sh", "CASES_ADMIN_DATABASE_URL=")
    for role, name in (("cases_service", roles.service), ("cases_admin", roles.admin)):
        assert f"postgresql://{role}@db.internal/cases" in lines
        lines = lines.replace(f"postgresql://{role}@db.internal/cases", f"'{roles.url(name)}'")
    assert run(lines, tmp_path).startswith("schema version ")
    with psycopg.connect(roles.url(roles.service)) as connection:
        assert connection.execute("select count(*) from cases").fetchone() == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from cases")


@pytest.mark.parametrize("kind", ["roles", "plain"])
def test_the_doctor_finds_nothing_wrong(kind: str, request: pytest.FixtureRequest) -> None:
    given: Roles = request.getfixturevalue(kind)
    settings = given.settings if kind == "roles" else given.plain_settings
    CommandDatabase(settings, None).initialize()
    variables = environment_of(msgspec.structs.replace(settings, bind="127.0.0.1:1"))
    command = [COMMAND, "doctor", "--json"]
    ran = subprocess.run(command, check=True, capture_output=True, env=environment(**variables))
    findings = {row["check"]: row["status"] for row in msgspec.json.decode(ran.stdout)}
    assert {check for check, status in findings.items() if status != "ok"} == {
        "API tokens",
        "signing keys",
    }  # there are none yet
    assert {"rights", "row security", "administration", "signing keys"} <= set(findings)


@pytest.mark.parametrize("kind", ["roles", "plain"])
def test_everything_works(kind: str, request: pytest.FixtureRequest) -> None:
    """Load, make, list, rotate and end with one role, serve and record with the same or another."""
    given: Roles = request.getfixturevalue(kind)
    settings = given.settings if kind == "roles" else given.plain_settings
    database = CommandDatabase(settings, None)
    database.initialize()
    app = create_app(settings)
    client = app.test_client()
    with database.connect() as connection:
        for _ in range(2):
            with DEMO_DATA.open("rb") as file:
                summary = load(connection, [LoadFile(DEMO_DATA.name, file)], box=BOX)
        assert sum(summary.written.values()) == 0
        organization = Organization(connection, BOX)
        visitor = organization.visitor()
        assert len(visitor.cases(3)) == 3
        assert client.get("/readyz").status_code == 200
        answer = get(client, organization, visitor.path)
        assert (answer.status_code, len(answer.json["results"])) == (200, 3)  # type: ignore[index]
        wait_for(lambda: all(one.last_used_at for one in listed(connection, organization)))
        assert administration.rotate_secrets(connection, box=BOX) >= 1
        administration.revoke_token(connection, organization_id=organization.id, token_id=organization.token_id)
        assert get(client, organization, visitor.path).status_code == 401
        administration.retire_key(connection, organization_id=organization.id, key_id=organization.kid)
    with app.extensions["cases_service"].database._pool.connection() as served:
        assert served.execute("select count(*) from cases").fetchone() == (0,)
    app.close()


@pytest.mark.parametrize("kind", ["roles", "plain"])
def test_conversations_and_events_are_loaded_and_removed(kind: str, request: pytest.FixtureRequest) -> None:
    given: Roles = request.getfixturevalue(kind)
    database = CommandDatabase(given.settings if kind == "roles" else given.plain_settings, None)
    database.initialize()
    with database.connect() as connection:
        company = Company(connection, BOX)
        case, stranger = company.case(), company.case()
        activity = company.activity(case_id=case["id"])
        note = company.message(activity_id=activity["id"], is_private=True)
        message = company.message(activity_id=activity["id"])
        lines = [case, stranger, activity, note, message, company.event()]
        summary = company.load(company.organization(), *lines)
        assert sum(summary.written.values()) == 1 + len(lines)
        assert company.load(*lines).unchanged == len(lines)
        assert company.load(activity | {"case_id": stranger["id"]}).written["activity"] == 1
        assert {str(row["case_id"]) for row in company.rows("messages").values()} == {stranger["id"]}
        (stored,) = company.rows("activities").values()
        assert (stored["message_count"], stored["private_message_count"]) == (1, 1)
        assert sum(company.load(*map(removal, (activity, note, message))).removed.values()) == 3


@pytest.mark.parametrize("kind", ["roles", "plain"])
def test_whoever_serves_learns_how_many_feeds_are_late(kind: str, request: pytest.FixtureRequest) -> None:
    given: Roles = request.getfixturevalue(kind)
    settings = given.settings if kind == "roles" else given.plain_settings
    at_hand = CommandDatabase(settings, None)
    at_hand.initialize()
    with at_hand.connect() as connection:
        for organization in [Organization(connection, BOX) for _ in range(2)]:
            for minutes in range(60, 80):
                organization.import_run(datetime.now(UTC) - timedelta(minutes=minutes))
    with psycopg.connect(settings.require_database_url()) as served:
        assert served.execute("select count_late_feeds()").fetchone() == (2,)


@pytest.mark.parametrize("kind", ["roles", "plain"])
def test_a_load_lets_the_planner_know(kind: str, request: pytest.FixtureRequest) -> None:
    """Also before PostgreSQL 17, where the owner alone may do that."""
    given: Roles = request.getfixturevalue(kind)
    database = CommandDatabase(given.settings if kind == "roles" else given.plain_settings, None)
    database.initialize()
    with database.connect() as connection:
        with DEMO_DATA.open("rb") as file:
            summary = load(connection, [LoadFile(DEMO_DATA.name, file)], box=BOX)
        known = connection.execute("select reltuples from pg_class where oid = 'cases'::regclass").fetchone()
    assert summary.without_statistics == []
    assert known == (1000,)


def test_a_load_says_what_the_planner_does_not_know_and_the_doctor_sees_it(roles: Roles) -> None:
    """The administrator of a database whose owner is somebody else's, with all rights but that one."""
    CommandDatabase(roles.settings, None).initialize()
    with psycopg.connect(roles.superuser_url, autocommit=True) as superuser:
        superuser.execute(f"revoke {roles.owner} from {roles.admin}".encode())
        if superuser.info.server_version >= 170000:
            superuser.execute(f"revoke maintain on all tables in schema public from {roles.admin}".encode())
        # It may come by between the load and the doctor.
        superuser.execute("alter table cases set (autovacuum_enabled = off)")
    variables = environment(**environment_of(msgspec.structs.replace(roles.settings, bind="127.0.0.1:1")))
    loaded = subprocess.run([COMMAND, "load", DEMO_DATA], check=True, capture_output=True, env=variables, text=True)
    assert loaded.stderr == (
        "the planner knows nothing new of organizations, users, visitors, contacts, case_funnel_stages, cases:"
        " have their owner run analyze, or wait for autovacuum\n"
    )
    ran = subprocess.run([COMMAND, "doctor", "--json"], check=True, capture_output=True, env=variables)
    (finding,) = [row for row in msgspec.json.decode(ran.stdout) if row["check"] == "statistics"]
    assert finding["status"] == "warning"
    assert re.fullmatch(
        "the planner has never looked at cases(, contacts)?: run analyze as their owner", finding["message"]
    )


def listed(connection: psycopg.Connection, organization: Organization) -> list[KnownKey | KnownToken]:
    return [
        *administration.list_keys(connection, organization_id=organization.id),
        *administration.list_tokens(connection, organization_id=organization.id),
    ]


def test_the_role_that_administers_cannot_change_the_schema_by_itself(roles: Roles) -> None:
    database = CommandDatabase(roles.settings, None)
    database.initialize()
    with database.connect() as connection:
        for text in ("drop table cases", "create table t ()", "alter table cases no force row level security"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(text.encode())
        for table in ("organizations", "users", "api_tokens", "signing_keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"delete from {table}".encode())


@pytest.mark.parametrize("role", ["admin", "owner"])
def test_who_does_not_ask_for_every_organization_sees_none(roles: Roles, role: str) -> None:
    database = CommandDatabase(roles.settings, None)
    database.initialize()
    with database.connect() as connection:
        Organization(connection, BOX)
    with psycopg.connect(roles.url(roles.admin)) as connection:
        if role == "owner":
            connection.execute(f"set role {roles.owner}".encode())
        assert connection.execute("select count(*) from organizations").fetchone() == (0,)
        connection.execute("set local cases.every_organization = 'on'")
        assert connection.execute("select count(*) from organizations").fetchone() == (1,)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_schema_of_one_role_is_upgraded_by_it_and_may_be_given_roles_later(plain: Roles, version: int) -> None:
    with psycopg.connect(plain.url(plain.admin), autocommit=True) as connection:
        for number, file in migrations._files().items():
            if number <= version:
                connection.execute(file.read_bytes())
        connection.execute("insert into schema_version (version) values (%s)", [version])
        # The factory makes tokens as this release does, with scopes.
        connection.execute("alter table api_tokens add column scopes text[]")
        organization = Organization(connection, BOX)
        connection.execute("alter table api_tokens drop column scopes")
        visitor = organization.visitor()
        visitor.cases(2)
    CommandDatabase(plain.plain_settings, None).initialize()
    with psycopg.connect(plain.superuser_url, autocommit=True) as connection:
        connection.execute(f"create role {plain.service} login password 'secret'".encode())
    CommandDatabase(plain.settings, None).initialize()
    for settings in (plain.plain_settings, plain.settings):
        app = create_app(settings)
        answer = get(app.test_client(), organization, visitor.path)
        assert (answer.status_code, len(answer.json["results"])) == (200, 2)  # type: ignore[index]
        app.close()


def test_a_service_role_that_does_not_exist_is_named(roles: Roles) -> None:
    settings = Settings(database_url=roles.url("nobody_at_all"), admin_database_url=roles.url(roles.admin))
    with pytest.raises(SchemaError, match="no role nobody_at_all"):
        CommandDatabase(settings, None).initialize()


def test_an_administrator_without_a_service_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="CASES_ADMIN_DATABASE_URL"):
        Settings(admin_database_url="host=db")


def test_the_owner_dumps_every_organization_where_it_asks_for_them(plain: Roles) -> None:
    database = CommandDatabase(plain.plain_settings, None)
    database.initialize()
    with database.connect() as connection:
        organization = Organization(connection, BOX)
    command = [str(_find_programs(None) / "pg_dump"), "--enable-row-security", plain.url(plain.admin)]
    environment = {**os.environ, "PGOPTIONS": "-c cases.every_organization=on"}
    dumped = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert str(organization.id) in dumped

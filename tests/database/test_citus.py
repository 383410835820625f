"""On a Citus cluster: the three roles, every command, every route, upgrades, and faults of a node."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo

from cases_service.application import Application, create_app
from cases_service.cli.commands import cli
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database import migrations
from cases_service.database.migrations import SCHEMA_VERSION
from cases_service.demo.demo import DEMO_DATA
from cases_service.embedded import supervisor
from cases_service.embedded.command_database import CommandDatabase
from cases_service.personal_data.export import export_visitor
from cases_service.settings import Settings
from tests import citus
from tests.api.conversations import Sides, sides_of
from tests.database.test_roles import ROLES, psql
from tests.factories import SECRET_KEY, TABLES, Organization, assert_problem, b64, cases_path, get
from tests.loading.test_loading import wait_until_blocks
from tests.process.running import COMMAND, environment
from tests.writing import Writer

pytestmark = pytest.mark.skipif(not citus.IS_USED, reason=citus.SKIP_REASON)

NEW_KEY = b64(b"n" * 32) + "="
FUNCTION = "ask_organization(uuid, boolean, text, text, text[], text[])"
# The service reads none of these.
UNSERVED = TABLES[-3:]


class Installation(NamedTuple):
    """A distributed database with the roles of deploy/roles.sql under names of its own."""

    name: str
    superuser_url: str

    def url(self, role: str) -> str:
        return make_conninfo(self.superuser_url, user=f"{self.name}_{role}", password="secret")

    @property
    def settings(self) -> Settings:
        return Settings(
            database_url=self.url("service"),
            admin_database_url=self.url("admin"),
            write_database_url=self.url("writer"),
            secret_key=SECRET_KEY,
        )

    def run(self, *arguments: object, status: int = 0, **variables: str) -> str:
        """Run a command with the three roles, and return what it says."""
        settings = self.settings
        given = {
            "DATABASE_URL": settings.database_url,
            "CASES_ADMIN_DATABASE_URL": settings.admin_database_url,
            "CASES_WRITE_DATABASE_URL": settings.write_database_url,
            "CASES_SECRET_KEY": SECRET_KEY,
            **variables,
        }
        for name in [name for name in os.environ if name.startswith("CASES_") and not name.startswith("CASES_TEST_")]:
            given.setdefault(name, "")
        ran = CliRunner(env=given).invoke(cli, [str(argument) for argument in arguments])
        code = 1 if ran.exception is not None and not isinstance(ran.exception, SystemExit) else ran.exit_code
        assert code == status, (ran.output, ran.exception)
        return ran.output + (str(ran.exception) if code else "")

    def load(self, tmp_path: Path, *lines: dict[str, Any], options: Sequence[str] = (), status: int = 0) -> str:
        file = tmp_path / f"{uuid4()}.ndjson"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.run("load", *options, file, status=status)


@contextmanager
def installed(server_url: str, *, distributes: bool = True) -> Iterator[Installation]:
    name = f"c{uuid4().hex[:12]}"
    psql(server_url, ROLES.replace("cases", name))
    with ExitStack() as stack:
        server = stack.enter_context(psycopg.connect(server_url, autocommit=True))
        for role in ("owner", "admin", "service", "writer"):
            stack.callback(server.execute, f"drop role if exists {name}_{role}".encode())
        url = stack.enter_context(citus.database(server_url, name, is_made=True))
        made = Installation(name, url)
        if distributes:
            made.run("init-db")
            citus.distribute(url)
        yield made


@pytest.fixture(scope="module")
def installation(server_url: str) -> Iterator[Installation]:
    with installed(server_url) as made:
        yield made


@pytest.fixture
def superuser(installation: Installation) -> Iterator[psycopg.Connection]:
    with psycopg.connect(installation.superuser_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def company(superuser: psycopg.Connection) -> Organization:
    return Organization(superuser, SecretBox([SECRET_KEY]))


@pytest.fixture
def client(installation: Installation) -> Iterator[FlaskClient]:
    """A client of a service that fails at once where a statement leaves its shard, of writes, too, but no import."""
    guard = " -c citus.multi_task_query_log_level=error"
    settings = installation.settings
    guarded = msgspec.structs.replace(
        settings,
        database_url=make_conninfo(settings.database_url or "", options=guard),
        write_database_url=make_conninfo(settings.write_database_url or "", options=guard),
    )
    app = create_app(guarded)
    yield app.test_client()
    app.close()


@pytest.fixture
def importing(installation: Installation) -> Iterator[FlaskClient]:
    """A client whose imports may bring what they compare with from all shards."""
    app = create_app(installation.settings)
    yield app.test_client()
    app.close()


@pytest.fixture
def sides(client: FlaskClient, company: Organization) -> Sides:
    return sides_of(client, company, case_number="C-1")


def lines_of(organization_id: UUID, number: int = 5) -> list[dict[str, Any]]:
    """Return the lines of a company with some cases of one visitor."""
    ids = {name: str(uuid4()) for name in ("user", "visitor", "contact", "stage")}
    owner = {"organization_id": str(organization_id)}
    return [
        {"type": "organization", "id": str(organization_id), "name": "Acme", "subscription_status": "active"},
        {"type": "user", "id": ids["user"], "email": "ada@example.com", **owner},
        {"type": "visitor", "id": ids["visitor"], "external_id": "customer", **owner},
        {"type": "contact", "id": ids["contact"], "visitor_id": ids["visitor"], **owner},
        {"type": "case_funnel_stage", "id": ids["stage"], "name": "New", "position": 1, **owner},
        *(case_of(organization_id, ids, n) for n in range(number)),
    ]


def case_of(organization_id: UUID, ids: dict[str, str], number: int) -> dict[str, Any]:
    return {
        "type": "case",
        "id": str(uuid4()),
        "organization_id": str(organization_id),
        "case_number": f"C-{number}",
        "contact_id": ids["contact"],
        "owner_id": ids["user"],
        "case_funnel_stage_id": ids["stage"],
        "status": "Open",
        "priority": 3,
        "created_at": "2024-01-01T00:00:00Z",
        "updated_at": f"2024-01-0{number % 9 + 1}T00:00:00Z",
    }


class TestSchema:
    def test_every_table_is_distributed_and_lies_together(self, superuser: psycopg.Connection) -> None:
        rows = superuser.execute("select logicalrelid::text, partmethod, colocationid from pg_dist_partition")
        found = {name: (method, group) for name, method, group in rows.fetchall()}
        tables = superuser.execute(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
        ).fetchall()
        assert set(found) == {name for (name,) in tables} == {*TABLES, "schema_version"}
        assert found.pop("schema_version")[0] == "n"
        assert len(set(found.values())) == 1

    def test_init_db_and_the_script_may_be_repeated(self, installation: Installation) -> None:
        for _ in range(2):
            assert installation.run("init-db") == f"schema version {SCHEMA_VERSION}\n"
            citus.distribute(installation.superuser_url)

    def test_no_policy_says_more_on_a_node_than_here(self, superuser: psycopg.Connection) -> None:
        """Citus makes permissive ones of restrictive ones there."""
        assert superuser.execute("select count(*) from pg_policy where not polpermissive").fetchone() == (0,)
        rows = superuser.execute("select qual from pg_policies where tablename = 'messages'").fetchall()
        assert any("private_notes" in text and "organization_id" in text for (text,) in rows)

    @pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
    def test_a_distributed_schema_is_upgraded(self, server_url: str, tmp_path: Path, version: int) -> None:
        with installed(server_url, distributes=False) as made:
            with psycopg.connect(make_conninfo(made.superuser_url), autocommit=True) as connection:
                connection.execute(f"set role {made.name}_owner".encode())
                for number, file in migrations._files().items():
                    for step in migrations.steps_of(file) if number <= version else ():
                        for statement in step.statements if step.kind == "outside" else [step.text]:
                            connection.execute(statement.encode())
                connection.execute("insert into schema_version (version) values (%s)", [version])
                connection.execute(f"grant select on schema_version to {made.name}_admin".encode())
            citus.distribute(made.superuser_url)
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                connection.execute(
                    "insert into organizations (organization_id, name, subscription_status)"
                    " select gen_random_uuid(), n, 'active' from generate_series(1, 9) n"
                )
            assert f"upgraded from {version}" in made.run("init-db")
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                rows = connection.execute("select logicalrelid::text from pg_dist_partition").fetchall()
                assert {name for (name,) in rows} == {*TABLES, "schema_version"}
                organization = Organization(connection, SecretBox([SECRET_KEY]))
                visitor = organization.visitor()
                visitor.cases(2)
            assert len(json.loads(made.run("list-organizations", "--json"))) == 10
            whom = ("--organization", organization.id, "--external-id", visitor.external_id)
            assert json.loads(made.run("erase-visitor", "--yes", *whom))["removed"]["case"] == 2
            lines = [line | {"updated_at": "2024-01-01T00:00:00Z"} for line in lines_of(organization.id)[-2:]]
            removals = [
                {name: line[name] for name in ("type", "organization_id", "id", "updated_at")} | {"deleted": True}
                for line in lines
            ]
            made.load(tmp_path, *removals, options=["--if-newer"])
            done = json.loads(made.load(tmp_path, *removals, options=["--if-newer", "--json"]))
            assert done["stale"] == 2


class TestRowSecurity:
    @pytest.mark.parametrize("role", ["service", "writer"])
    def test_a_role_sees_one_organization_and_no_notes(
        self, installation: Installation, sides: Sides, superuser: psycopg.Connection, role: str
    ) -> None:
        sides.say("Hello")
        sides.note()
        other = Organization(superuser, SecretBox([SECRET_KEY]))
        other.visitor().cases(1)
        with psycopg.connect(installation.url(role)) as connection:
            for table in TABLES:
                with connection.transaction():
                    connection.execute("set local citus.propagate_set_commands = 'local'")
                    connection.execute(f"set local cases.organization_id = '{sides.organization.id}'".encode())
                    try:
                        rows = connection.execute(f"select distinct organization_id from {table}".encode()).fetchall()
                    except psycopg.errors.InsufficientPrivilege:
                        assert role == "writer" or table in UNSERVED
                        continue
                    assert {str(one) for (one,) in rows} <= {str(sides.organization.id)}, table
                    if table == "messages":
                        notes = connection.execute("select count(*) from messages where is_private").fetchone()
                        assert (len(rows), notes) == (1, (0,))

    def test_without_an_organization_nothing_is_seen(self, installation: Installation, company: Organization) -> None:
        with psycopg.connect(installation.url("service"), autocommit=True) as connection:
            for table in TABLES:
                if table not in UNSERVED:
                    assert connection.execute(f"select count(*) from {table}".encode()).fetchone() == (0,), table

    def test_nothing_is_written_for_another_organization(
        self, installation: Installation, company: Organization
    ) -> None:
        statement = "insert into case_funnel_stages (organization_id, id, name, position) values (%s, %s, 'New', 1)"
        with psycopg.connect(installation.url("writer")) as connection:
            connection.execute("set local citus.propagate_set_commands = 'local'")
            connection.execute(f"set local cases.organization_id = '{uuid4()}'".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement, [company.id, uuid4()])


class TestCommands:
    def test_tokens(self, installation: Installation, company: Organization, client: FlaskClient) -> None:
        said = installation.run("create-token", "--organization", company.id, "--user", company.user_id).split()
        token_id, token = said[2], said[-1]
        path = company.visitor().path
        assert client.get(path, headers={"Authorization": f"Token {token}"}).status_code == 200
        installation.run("revoke-token", "--organization", company.id, token_id)
        assert client.get(path, headers={"Authorization": f"Token {token}"}).status_code == 401
        listed = json.loads(installation.run("list-tokens", "--organization", company.id, "--json"))
        assert [one["revoked_at"] is None for one in listed] == [True, False]
        installation.run("revoke-token", "--organization", company.id, token_id)
        assert json.loads(installation.run("list-tokens", "--organization", company.id, "--json")) == listed

    def test_keys(self, installation: Installation, company: Organization, client: FlaskClient) -> None:
        key = json.loads(installation.run("create-key", "--organization", company.id))
        visitor = company.visitor()
        sign = ("sign", "--organization", company.id, "--external-id", visitor.external_id, "--kid", key["kid"])
        token = installation.run(*sign).strip()
        assert get(client, company, cases_path(company.id, token)).status_code == 200
        report = installation.run("check-token", "--organization", company.id, token)
        assert "contacts      1\n" in report
        installation.run("retire-key", "--organization", company.id, key["kid"])
        assert get(client, company, cases_path(company.id, token)).status_code == 400
        listed = json.loads(installation.run("list-keys", "--organization", company.id, "--json"))
        assert [one["retired_at"] is None for one in listed] == [True, False]

    def test_an_eleventh_key_is_refused(self, installation: Installation, company: Organization) -> None:
        for _ in range(9):
            installation.run("create-key", "--organization", company.id)
        installation.run("create-key", "--organization", company.id, status=1)

    def test_an_eleventh_key_is_refused_by_load(
        self, installation: Installation, company: Organization, tmp_path: Path
    ) -> None:
        def key() -> dict[str, Any]:
            return {
                "type": "signing_key",
                "id": str(uuid4()),
                "organization_id": str(company.id),
                "algorithm": "HS256",
                "secret": "s" * 43,
            }

        installation.load(tmp_path, *(key() for _ in range(9)))
        installation.load(tmp_path, key(), status=1)
        installation.load(tmp_path, key(), options=["--each"], status=1)
        listed = json.loads(installation.run("list-keys", "--organization", company.id, "--json"))
        assert len(listed) == 10

    def test_every_secret_is_encrypted_anew(self, installation: Installation, company: Organization) -> None:
        company.key()
        with psycopg.connect(installation.superuser_url) as connection:
            row = connection.execute("select count(*) from signing_keys where encrypted_secret is not null").fetchone()
        assert row is not None
        both = f"{NEW_KEY},{SECRET_KEY}"
        assert installation.run("rotate-secrets", CASES_SECRET_KEY=both).startswith(f"{row[0]} secret")
        installation.run("rotate-secrets", status=1)
        back = f"{SECRET_KEY},{NEW_KEY}"
        assert installation.run("rotate-secrets", CASES_SECRET_KEY=back).startswith(f"{row[0]} secret")

    def test_lists(self, installation: Installation, company: Organization) -> None:
        listed = json.loads(installation.run("list-organizations", "--json"))
        assert str(company.id) in {one["id"] for one in listed}
        users = json.loads(installation.run("list-users", "--organization", company.id, "--json"))
        assert [one["id"] for one in users] == [str(company.user_id)]

    def test_doctor_looks_at_every_organization(
        self, installation: Installation, superuser: psycopg.Connection, company: Organization
    ) -> None:
        superuser.execute(
            "update api_tokens set expires_at = now() + interval '1 day' where organization_id = %s", [company.id]
        )
        for number in range(20):
            company.import_run(_ago(days=2, minutes=number))
        said = json.loads(installation.run("doctor", "--json"))
        found = {one["check"]: (one["status"], one["message"]) for one in said}
        assert "failure" not in {status for status, _ in found.values()}, found
        assert found["administration"] == ("ok", "the role of the commands sees every organization")
        assert str(company.id) in found["API tokens"][1]
        assert str(company.id) in found["feeds"][1]
        assert found["Citus"][0] == "ok"

    def test_doctor_says_that_the_function_of_calls_is_missing(
        self, installation: Installation, superuser: psycopg.Connection
    ) -> None:
        superuser.execute(f"revoke execute on function {FUNCTION} from public".encode())
        try:
            said = json.loads(installation.run("doctor", "--json"))
        finally:
            superuser.execute(f"grant execute on function {FUNCTION} to public".encode())
        (found,) = (one for one in said if one["check"] == "Citus")
        assert found["status"] == "warning"
        assert "deploy/citus.sql" in found["message"]

    def test_a_person_is_exported_and_erased_and_does_not_come_back(
        self, installation: Installation, sides: Sides, superuser: psycopg.Connection, tmp_path: Path
    ) -> None:
        sides.say("Hello")
        sides.note()
        whom = ("--organization", sides.organization.id, "--external-id", sides.visitor.external_id)
        exported = [json.loads(line) for line in installation.run("export-visitor", *whom).splitlines()]
        types = ["visitor", "contact", "case", "activity", "message", "event"]
        assert [line["type"] for line in exported] == types
        receipt = json.loads(installation.run("erase-visitor", "--yes", *whom))
        assert receipt["removed"]["case"] == 1
        for table in ("visitors", "contacts", "cases", "activities", "messages", "events"):
            statement = f"select count(*) from {table} where organization_id = %s"
            assert superuser.execute(statement.encode(), [sides.organization.id]).fetchone() == (0,), table
        assert "erased" in installation.load(tmp_path, *exported, status=1)
        installation.run("allow-visitor", *whom)
        installation.load(tmp_path, *exported)

    def test_an_export_is_one_state_of_the_nodes(
        self, installation: Installation, sides: Sides, superuser: psycopg.Connection
    ) -> None:
        sides.say("Hello")
        about: dict[str, Any] = {"organization_id": sides.organization.id, "external_id": sides.visitor.external_id}
        with CommandDatabase(installation.settings, None).connect() as connection:
            before = list(export_visitor(connection, **about))
            lines = export_visitor(connection, **about)
            first = next(lines)
            sides.say("And another thing")
            assert [first, *lines] == before
            assert len(list(export_visitor(connection, **about))) == len(before) + 2

    def test_who_waits_in_vain_erases_nothing_and_loads_nothing(
        self, installation: Installation, sides: Sides, superuser: psycopg.Connection, tmp_path: Path
    ) -> None:
        """A row is held on its node, which has to be told how long to wait."""
        whom = ("--organization", sides.organization.id, "--external-id", sides.visitor.external_id)
        exported = installation.run("export-visitor", *whom)
        with psycopg.connect(installation.superuser_url) as holder:
            about = [sides.organization.id, sides.case_id]
            holder.execute("select 1 from cases where organization_id = %s and id = %s for update", about)
            with released_after(20, holder):
                said = installation.run("erase-visitor", *whom, "--yes", "--wait", "0.2", status=1)
                assert "nothing was erased, try again" in said
                lines = [json.loads(line) for line in exported.splitlines()]
                lines = [line | {"priority": 5} for line in lines if line["type"] == "case"]
                said = installation.load(tmp_path, *lines, options=["--wait", "0.2"], status=1)
                assert "nothing was loaded, try again" in said
        assert installation.run("export-visitor", *whom) == exported

    def test_no_node_keeps_values_of_the_erased_for_its_planner(
        self, installation: Installation, client: FlaskClient, sides: Sides, superuser: psycopg.Connection
    ) -> None:
        # A table, which each shard is, keeps the statistics that it had while it has no rows.
        sides_of(client, sides.organization, case_number="C-2").say("Hello")
        said = f"x{uuid4().hex}"
        sides.say(said)
        sides.say(said)
        superuser.execute("analyze")
        assert said in statistics(superuser)
        whom = ("--organization", sides.organization.id, "--external-id", sides.visitor.external_id)
        assert "run analyze" not in installation.run("erase-visitor", *whom, "--yes")
        assert said not in statistics(superuser)

    def test_a_removal_is_remembered_until_it_is_pruned(
        self, installation: Installation, superuser: psycopg.Connection, tmp_path: Path
    ) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines)
        case = lines[-1]
        names = ("type", "organization_id", "id")
        removal = {name: case[name] for name in names} | {"deleted": True, "updated_at": "2024-02-01T00:00:00Z"}

        def load(*some: dict[str, Any]) -> tuple[int, int, int]:
            done = json.loads(installation.load(tmp_path, *some, options=["--if-newer", "--json"]))
            return done["written"]["case"], done["removed"]["case"], done["stale"]

        assert load(removal) == (0, 1, 0)
        assert load(case, removal) == (0, 0, 2)
        about = [case["organization_id"]]
        superuser.execute("update removed_rows set removed_at = '2020-01-01Z' where organization_id = %s", about)
        assert installation.run("prune-events", "--older-than", 100) == "0 events removed\n"
        assert load(case) == (1, 0, 0)

    def test_events_are_pruned_in_every_organization(
        self, installation: Installation, sides: Sides, superuser: psycopg.Connection
    ) -> None:
        sides.say("Hello")
        superuser.execute(
            "update events set created_at = '2020-01-01Z' where organization_id = %s", [sides.organization.id]
        )
        assert installation.run("prune-events", "--older-than", 100) == "1 event removed\n"


@contextmanager
def released_after(seconds: float, holder: psycopg.Connection) -> Iterator[None]:
    """End what a connection holds after a while, so that who waits for it in vain is found out, and no test hangs."""
    end = threading.Timer(seconds, holder.rollback)
    end.start()
    try:
        yield
    finally:
        end.cancel()


def statistics(connection: psycopg.Connection) -> str:
    """Return the values that the planners of the nodes keep of all columns."""
    rows = connection.execute(
        "select result from run_command_on_all_nodes($$select string_agg(s::text, '') from pg_stats s$$)"
    )
    return "".join(text for (text,) in rows)


def _ago(*, days: int, minutes: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days, minutes=minutes)


class TestLoad:
    """As cases_admin, whom row security binds."""

    def test_a_file_is_loaded_and_loaded_again(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        first = json.loads(installation.load(tmp_path, *lines, options=["--json"]))
        assert (first["lines"], sum(first["written"].values()), first["unchanged"]) == (10, 10, 0)
        again = json.loads(installation.load(tmp_path, *lines, options=["--json"]))
        assert (sum(again["written"].values()), again["unchanged"]) == (0, 10)
        lines[-1]["priority"] = 5
        changed = json.loads(installation.load(tmp_path, *lines, options=["--json"]))
        assert (sum(changed["written"].values()), changed["unchanged"]) == (1, 9)

    def test_real_data_of_two_organizations(self, installation: Installation, tmp_path: Path) -> None:
        installation.run("load", DEMO_DATA)
        ids = [uuid4(), uuid4()]
        installation.load(tmp_path, *(line for one in ids for line in lines_of(one)))

    def test_numbers_are_swapped_and_a_taken_one_is_named(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines)
        one, other = lines[-2], lines[-1]
        one["case_number"], other["case_number"] = other["case_number"], one["case_number"]
        installation.load(tmp_path, one, other)
        one["case_number"] = other["case_number"]
        installation.load(tmp_path, one, status=1)

    def test_each(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        lines[-1]["owner_id"] = str(uuid4())
        lines[-2]["case_number"] = lines[-3]["case_number"]
        done = json.loads(installation.load(tmp_path, *lines, options=["--each", "--json"], status=1).splitlines()[0])
        assert (done["error_count"], done["written"]["case"]) == (2, 3)

    def test_if_newer(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines)
        old, new = dict(lines[-1], subject="old"), dict(lines[-2], subject="new", updated_at="2024-02-01T00:00:00Z")
        old["updated_at"] = "2023-01-01T00:00:00Z"
        done = json.loads(installation.load(tmp_path, old, new, options=["--if-newer", "--json"]))
        assert (done["stale"], done["written"]["case"]) == (1, 1)

    def test_keep_left_out(self, installation: Installation, tmp_path: Path, superuser: psycopg.Connection) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines)
        line = {name: value for name, value in lines[-1].items() if name != "owner_id"} | {"subject": "new"}
        installation.load(tmp_path, line, options=["--keep-left-out"])
        statement = "select owner_id::text, subject from cases where organization_id = %s and id = %s"
        row = superuser.execute(statement, [line["organization_id"], line["id"]]).fetchone()
        assert row == (lines[-1]["owner_id"], "new")

    def test_snapshot(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines)
        options = ["--snapshot", "--max-removals", "50", "--json"]
        done = json.loads(installation.load(tmp_path, *lines[:-2], options=options))
        assert done["removed"]["case"] == 2
        installation.load(tmp_path, *lines[:-4], options=["--snapshot"], status=1)

    def test_check(self, installation: Installation, tmp_path: Path) -> None:
        lines = lines_of(uuid4())
        installation.load(tmp_path, *lines, options=["--check"])
        listed = json.loads(installation.run("list-organizations", "--json"))
        assert lines[0]["id"] not in {one["id"] for one in listed}

    def test_lines_are_followed(self, installation: Installation, tmp_path: Path) -> None:
        settings = installation.settings
        given = environment(
            DATABASE_URL=settings.database_url or "",
            CASES_ADMIN_DATABASE_URL=settings.admin_database_url or "",
            CASES_SECRET_KEY=SECRET_KEY,
        )
        text = "".join(json.dumps(line) + "\n" for line in lines_of(uuid4()))
        ran = subprocess.run(
            [COMMAND, "load", "--follow", "--batch", "4", "-"],
            input=text,
            env=given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(ran.stdout.splitlines()) == 3

    def test_conversations_move_with_their_activity(
        self, installation: Installation, tmp_path: Path, superuser: psycopg.Connection
    ) -> None:
        lines = lines_of(uuid4())
        owner = {"organization_id": lines[0]["id"]}
        activity = {
            "type": "activity",
            "id": str(uuid4()),
            "case_id": lines[-1]["id"],
            "channel": "webchat",
            "created_at": "2024-01-01T00:00:00Z",
            **owner,
        }
        message = {
            "type": "message",
            "id": str(uuid4()),
            "activity_id": activity["id"],
            "sender_type": "visitor",
            "text": "Hello",
            "created_at": "2024-01-01T00:00:00Z",
            "is_private": False,
            **owner,
        }
        installation.load(tmp_path, *lines, activity, message)
        installation.load(tmp_path, activity | {"case_id": lines[-2]["id"]})
        statement = "select case_id::text from messages where organization_id = %s"
        assert superuser.execute(statement, [lines[0]["id"]]).fetchall() == [(lines[-2]["id"],)]
        installation.load(tmp_path, {"type": "case", "id": lines[-2]["id"], "deleted": True, **owner})
        assert superuser.execute(statement, [lines[0]["id"]]).fetchall() == []


class TestRoutes:
    """With a service that fails where a statement leaves its shard."""

    def test_every_read_of_a_visitor(self, client: FlaskClient, company: Organization) -> None:
        visitor = company.visitor(contacts=3)
        ids = visitor.cases(7)
        for query in (
            "?page_size=2",
            "?ordering=-updated_at&status=Open,Closed",
            "?priority=3&latest_messaging_channel=null",
            "?created_since=2015-01-01T00:00:00Z&is_closed=false",
            "?fields=id",
            "?fields=id,subject,owner",
        ):
            answer = get(client, company, visitor.path + query)
            assert answer.status_code == 200, answer.get_json()
            again = get(client, company, visitor.path + query, **{"If-None-Match": answer.headers["ETag"]})
            assert again.status_code == 304
            document = answer.get_json()
            while document["next"]:
                document = get(client, company, document["next"]).get_json()
        for path in (f"/{ids[0]}", f"/{ids[0]}?fields=id,contact", "/summary", f"/{ids[0]}/messages"):
            assert get(client, company, visitor.path + path).status_code == 200

    def test_the_organizations_own_cases(self, client: FlaskClient, company: Organization) -> None:
        headers = {"Authorization": f"Token {company.token_with('cases:write')}"}
        visitor = company.visitor()
        body = {"case_number": "C-1", "priority": 3, "contact_id": str(visitor.contact_ids[0])}
        made = client.post(company.cases_path, json=body, headers=headers)
        assert made.status_code == 201, made.json
        path = f"{company.cases_path}/{made.get_json()['id']}"
        again = client.post(company.cases_path, json=body, headers=headers)
        assert (again.status_code, again.get_json()["case_id"]) == (409, made.get_json()["id"])
        body |= {"is_closed": True, "owner_id": str(company.user_id)}
        replaced = client.put(path, json=body, headers={**headers, "If-Match": made.headers["ETag"]})
        assert replaced.status_code == 200, replaced.json
        late = client.patch(path, json={"priority": 1}, headers={**headers, "If-Match": made.headers["ETag"]})
        assert late.status_code == 412
        assert client.patch(path, json={"priority": 1}, headers=headers).get_json()["priority"] == 1
        wrong = client.patch(path, json={"contact_id": str(uuid4())}, headers=headers)
        assert wrong.status_code == 400
        for query in (
            "",
            "?ordering=-updated_at&page_size=1",
            f"?contact_id={visitor.contact_ids[0]},null",
            f"?owner_id={company.user_id}&status=Closed",
            "?case_number=C-1",
            f"?external_id={visitor.external_id}",
        ):
            found = client.get(company.cases_path + query, headers=headers).get_json()["results"]
            assert [one["case_number"] for one in found] == ["C-1"], query
        assert client.delete(path, headers=headers).status_code == 204
        assert client.delete(path, headers=headers).status_code == 404

    def test_a_deleted_case_is_not_brought_back_by_what_is_older(
        self, client: FlaskClient, importing: FlaskClient, company: Organization
    ) -> None:
        headers = {"Authorization": f"Token {company.token_with('cases:write')}"}
        body = {"case_number": "C-1", "priority": 3}
        made = client.post(company.cases_path, json=body, headers=headers).get_json()
        path = f"{company.cases_path}/{made['id']}"
        names = ("id", "case_number", "status", "priority", "created_at", "updated_at")
        line = {"type": "case", **{name: made[name] for name in names}}

        def import_line(**changes: str) -> Any:
            sent = {**headers, "Content-Type": "application/x-ndjson"}
            path = f"/api/v5/orgs/{company.id}/import?if_newer=true"
            return importing.post(path, data=json.dumps(line | changes), headers=sent).get_json()

        assert client.delete(path, headers=headers).status_code == 204
        assert import_line()["stale"] == 1
        assert client.get(path, headers=headers).status_code == 404
        assert import_line(updated_at="2999-01-01T00:00:00Z")["written"]["case"] == 1

    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_an_import(self, importing: FlaskClient, company: Organization, mode: str) -> None:
        client = importing
        headers = {"Authorization": f"Token {company.token_with('cases:write')}"}
        lines = lines_of(company.id)[1:]
        lines.append(dict(lines[-1], id=str(uuid4()), case_number="C-9", owner_id=str(uuid4())))
        body = "".join(json.dumps(line) + "\n" for line in lines)
        path = f"/api/v5/orgs/{company.id}/import"
        sent = {**headers, "Content-Type": "application/x-ndjson"}
        answer = client.post(f"{path}?mode={mode}", data=body, headers=sent)
        assert answer.status_code == (200 if mode == "each" else 400)
        assert answer.get_json()["error_count"] == 1
        if mode == "each":
            assert answer.get_json()["written"]["case"] == 5
            again = client.post(f"{path}?if_newer=true&left_out=keep", data=body.rsplit("\n", 2)[0], headers=sent)
            assert (again.get_json()["stale"], again.get_json()["written"]["case"]) == (5, 0)
        assert client.get(path, headers=headers).status_code == 200

    def test_a_conversation_of_both_sides(self, sides: Sides) -> None:
        assert sides.by_visitor("POST", "/messages", {"text": "Hello"}).status_code == 201
        answer = {"text": "Hi", "is_private": False}
        assert sides.by_organization("POST", "/messages", answer).status_code == 201
        assert sides.by_visitor("GET", "/messages").status_code == 200
        assert sides.by_organization("GET", "/activities").status_code == 200
        assert sides.by_visitor("PUT", "/read", {}).status_code == 200
        assert sides.by_organization("PUT", "/read", {}).status_code == 200
        assert len(sides.events().get_json()["results"]) == 2


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[citus.Cluster, Installation]]:
    with citus.cluster() as cluster, installed(cluster.url) as made:
        yield cluster, made


@pytest.fixture
def places(own: tuple[citus.Cluster, Installation]) -> Iterator[dict[str, Organization]]:
    """An organization on each of the workers, by the worker's name."""
    _, made = own
    found: dict[str, Organization] = {}
    with psycopg.connect(made.superuser_url, autocommit=True) as connection:
        while len(found) < 2:
            organization = Organization(connection, SecretBox([SECRET_KEY]))
            found.setdefault(node_of(connection, organization.id), organization)
        yield found


@pytest.fixture(params=[False, True], ids=["coordinator", "nodes"])
def serving(own: tuple[citus.Cluster, Installation], request: pytest.FixtureRequest) -> Iterator[Application]:
    """A service that asks the coordinator alone, and one that connects to the nodes, too."""
    app = create_app(msgspec.structs.replace(own[1].settings, citus_nodes=request.param))
    yield app
    app.close()


class TestPlanner:
    """On a cluster of their own, whose shards may be moved."""

    def test_it_is_told_of_every_shard_also_of_one_that_has_moved(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization]
    ) -> None:
        _, made = own
        with psycopg.connect(made.superuser_url, autocommit=True) as connection:
            for organization in places.values():
                organization.visitor().cases(2)
            made.run("init-db")
            assert shards_told(connection) == {True}
            move(connection, next(iter(places.values())).id)
            assert shards_told(connection) == {True, False}
            made.run("init-db")
            assert shards_told(connection) == {True}


class TestFaults:
    """On a cluster of their own, which has a node stopped."""

    def test_where_a_node_is_down_its_organizations_are_told_so_and_others_are_served(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], serving: Application
    ) -> None:
        cluster, _ = own
        app = serving
        client = app.test_client()
        paths = {node: organization.visitor().path for node, organization in places.items()}
        server = cluster.servers[1]
        down = str(server.data_dir / "socket")
        try:
            assert {get(client, places[node], paths[node]).status_code for node in places} == {200}
            server.stop()
            for node, organization in places.items():
                answer = get(client, organization, paths[node])
                if node == down:
                    assert (answer.status_code, answer.get_json()["code"]) == (503, "unavailable")
                    assert answer.headers["Retry-After"]
                else:
                    assert answer.status_code == 200
            server.start()
            deadline = time.monotonic() + 20
            while get(client, places[down], paths[down]).status_code != 200:
                assert time.monotonic() < deadline
        finally:
            server.start()

    def test_where_a_node_is_a_standby_its_organizations_are_told_that_nothing_is_written(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization]
    ) -> None:
        cluster, made = own
        app = create_app(made.settings)
        server = cluster.servers[1]
        writers = {node: Writer(app.test_client(), organization) for node, organization in places.items()}
        server.stop()
        signal = server.data_dir / supervisor.CLUSTER / "standby.signal"
        try:
            signal.touch()
            server.start()
            for node, writer in writers.items():
                answer = writer.send("POST", body={"case_number": "C-1", "priority": 3})
                if node == str(server.data_dir / "socket"):
                    detail = assert_problem(answer, 503, "unavailable")["detail"]
                    assert detail == "The database takes no writes now. Nothing was changed."
                else:
                    assert answer.status_code == 201
        finally:
            server.stop()
            signal.unlink()
            server.start()
            app.close()

    def test_an_erasure_whose_node_goes_away_leaves_everything(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization]
    ) -> None:
        cluster, made = own
        server = cluster.servers[1]
        organization = places[str(server.data_dir / "socket")]
        visitor = organization.visitor()
        visitor.cases(2)
        whom = ("--organization", organization.id, "--external-id", visitor.external_id)
        before = made.run("export-visitor", *whom)
        holder = psycopg.connect(made.superuser_url)
        try:
            with ThreadPoolExecutor(1) as threads:
                # What an erasure does in the end: everything else has been removed by then.
                holder.execute("insert into erasure_keys values (%s, %s)", [organization.id, b"k" * 32])
                erasing = threads.submit(made.run, "erase-visitor", "--yes", *whom, status=1)
                wait_until_blocks(holder)
                server.stop()
                erasing.result()
        finally:
            holder.close()
            server.start()
        assert made.run("export-visitor", *whom) == before
        assert json.loads(made.run("erase-visitor", "--yes", *whom))["removed"]["case"] == 2

    @pytest.mark.parametrize("nodes", [False, True])
    def test_a_shard_that_moves_is_followed(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], nodes: bool
    ) -> None:
        _, made = own
        with psycopg.connect(made.superuser_url, autocommit=True) as connection:
            connection.execute(f"alter role {made.name}_service set track_functions = 'pl'".encode())
        app = create_app(msgspec.structs.replace(made.settings, citus_nodes=nodes))
        client = app.test_client()
        node, organization = next(iter(places.items()))
        calls = calls_of(made)
        visitor = organization.visitor()
        visitor.cases(5)
        path, expected = visitor.path, None
        expected = get(client, organization, path).get_json()
        answers: list[Any] = []
        stop = threading.Event()

        def ask() -> None:
            own_client = app.test_client()
            while not stop.is_set():
                answer = get(own_client, organization, path)
                answers.append((answer.status_code, answer.get_json()))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                for _ in range(4):
                    move(connection, organization.id)
                    # What it has left behind goes away under those who ask.
                    connection.execute("call citus_cleanup_orphaned_resources()")
                assert node_of(connection, organization.id) == node
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            app.close()
        assert {status for status, _ in answers} == {200}
        assert all(document == expected for _, document in answers)
        assert len(answers) > 10
        # Nobody went back to the statements themselves. Where nodes are connected to, a shard that has just moved is
        # asked by a call, too.
        deadline = time.monotonic() + 20
        while calls_of(made) - calls < (1 if nodes else len(answers)):
            assert time.monotonic() < deadline

    def test_what_a_moved_shard_has_left_behind_is_not_read(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization]
    ) -> None:
        _, made = own
        node, organization = next(iter(places.items()))
        _, workers = citus.nodes_of(made.superuser_url)
        (worker,) = (one for one in workers if one.name == node)
        # Neither Citus nor the service would call the node itself, which does not look where the shard is.
        call: Any = (
            "select ask_organization(%s, false, 'count',"
            " 'select array[array_send(array[count(*)::text])] from %%1$s', '{cases}', '{}') from generate_series(1, 1)"
        )
        with psycopg.connect(worker.url(made.superuser_url), autocommit=True) as old:
            assert old.execute(call, [organization.id]).fetchone()
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                move(connection, organization.id)
                with pytest.raises(psycopg.errors.UndefinedTable, match="moved away"):
                    old.execute(call, [organization.id])
                move(connection, organization.id)
                assert old.execute(call, [organization.id]).fetchone()


class TestNodes:
    """With connections to the nodes themselves (CASES_CITUS_NODES)."""

    @pytest.fixture
    def app(self, own: tuple[citus.Cluster, Installation]) -> Iterator[Application]:
        app = create_app(msgspec.structs.replace(own[1].settings, citus_nodes=True))
        yield app
        app.close()

    def test_a_node_answers_over_connections_of_the_services_own(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], app: Application
    ) -> None:
        _, made = own
        for node, organization in places.items():
            assert sessions_at(made, node) == 0
            visitor = organization.visitor()
            visitor.cases(3)
            page = get(app.test_client(), organization, visitor.path).get_json()
            assert [case["contact"]["id"] for case in page["results"]] == [str(visitor.contact_ids[0])] * 3
            assert sessions_at(made, node) > 0

    def test_what_is_written_where_a_shard_has_moved_to_is_read_at_once(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], app: Application
    ) -> None:
        _, made = own
        organization = next(iter(places.values()))
        visitor = organization.visitor()
        (case_id,) = visitor.cases(1)
        client = app.test_client()
        for cleans_up in (False, True, True, False):
            assert get(client, organization, visitor.path).status_code == 200
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                move(connection, organization.id)
                if cleans_up:
                    connection.execute("call citus_cleanup_orphaned_resources()")
            subject = f"moved {uuid4()}"
            organization.update("cases", "id", case_id, subject=subject)
            (case,) = get(client, organization, visitor.path).get_json()["results"]
            assert case["subject"] == subject

    def test_a_copy_that_takes_the_place_of_a_node_is_asked(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], app: Application
    ) -> None:
        """As a standby that is promoted."""
        cluster, made = own
        server = cluster.servers[1]
        organization = places[str(server.data_dir / "socket")]
        path = organization.visitor().path
        client = app.test_client()
        assert get(client, organization, path).status_code == 200
        copy = citus.Server(server.data_dir.with_name("promoted"))
        try:
            server.stop()
            shutil.copytree(server.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("socket"))
            copy.start()
            assert get(client, organization, path).status_code == 503
            take_over(made, server, copy)
            assert get(client, organization, path).status_code == 200
            assert sessions_at(made, str(copy.data_dir / "socket")) > 0
        finally:
            copy.stop()
            server.start()
            take_over(made, copy, server)

    def test_a_node_that_is_added_answers_for_what_moves_there(
        self, own: tuple[citus.Cluster, Installation], places: dict[str, Organization], app: Application
    ) -> None:
        cluster, made = own
        node, organization = next(iter(places.items()))
        path = organization.visitor().path
        client = app.test_client()
        expected = get(client, organization, path).get_json()
        added = citus.Server(cluster.servers[0].data_dir.with_name("added"))
        name = str(added.data_dir / "socket")
        try:
            with psycopg.connect(added.start(), autocommit=True) as server:
                server.execute(f"create database {made.name} template template0 encoding 'UTF8' locale 'C'".encode())
            with psycopg.connect(make_conninfo(added.start(), dbname=made.name), autocommit=True) as server:
                server.execute("create extension citus")
            with psycopg.connect(made.superuser_url, autocommit=True) as connection:
                connection.execute("select citus_add_node(%s, %s)", [name, supervisor.PORT])
                connection.execute("select replicate_reference_tables('block_writes')")
                move(connection, organization.id, name)
                assert get(client, organization, path).get_json() == expected
                app.extensions["cases_service"].database._shards.clear()
                assert get(client, organization, path).get_json() == expected
                assert sessions_at(made, name) > 0
                move(connection, organization.id, node)
                connection.execute("call citus_cleanup_orphaned_resources()")
                connection.execute("select citus_remove_node(%s, %s)", [name, supervisor.PORT])
            assert get(client, organization, path).get_json() == expected
        finally:
            added.stop()


def sessions_at(made: Installation, node: str) -> int:
    """Return how many of a node's sessions are the service's own."""
    with psycopg.connect(made.superuser_url) as connection:
        row = connection.execute(
            "select result::int from run_command_on_workers($$select count(*) from pg_stat_activity"
            " where application_name = 'cases-service' and datname = current_database()$$) where nodename = %s",
            [node],
        ).fetchone()
        assert row is not None
        return int(row[0])


def take_over(made: Installation, old: citus.Server, new: citus.Server) -> None:
    """Tell the cluster that a server has the place of another one."""
    with psycopg.connect(made.superuser_url, autocommit=True) as connection:
        connection.execute(
            "select citus_update_node(nodeid, %s, nodeport) from pg_dist_node where nodename = %s",
            [str(new.data_dir / "socket"), str(old.data_dir / "socket")],
        )


def calls_of(made: Installation) -> int:
    """Return how often the nodes have answered a call, by sessions that have ended."""
    with psycopg.connect(made.superuser_url) as connection:
        row = connection.execute(
            "select coalesce(sum(result::bigint), 0) from run_command_on_workers("
            " $$select calls from pg_stat_user_functions where funcname = 'ask_organization'$$)"
            " where success and result <> ''"
        ).fetchone()
        assert row is not None
        return int(row[0])


def shards_told(connection: psycopg.Connection) -> set[bool]:
    """Return whether the planner is told of shards what it is told of their tables, and has looked at them since."""
    rows = connection.execute("""
        select told.result::boolean
        from pg_dist_partition d
        cross join run_command_on_shards(d.logicalrelid, $command$
            select attoptions::text ~ 'n_distinct=1'
                and not exists (
                    select from pg_statistic where (starelid, staattnum) = (attrelid, attnum) and stadistinct <> 1
                )
            from pg_attribute where attrelid = '%1$s'::regclass and attname = 'organization_id'
        $command$) told
        where d.logicalrelid = any ('{cases, contacts, messages, events, removed_rows}'::regclass[])
    """).fetchall()
    return {told for (told,) in rows}


def node_of(connection: psycopg.Connection, organization_id: UUID) -> str:
    row = connection.execute(
        "select nodename from pg_dist_shard_placement"
        " where shardid = get_shard_id_for_distribution_column('organizations', %s)",
        [organization_id],
    ).fetchone()
    assert row is not None
    return str(row[0])


def move(connection: psycopg.Connection, organization_id: UUID, node: str | None = None) -> None:
    """Move the shard of an organization to a worker, or the other one."""
    before = node_of(connection, organization_id)
    connection.execute(
        "select citus_move_shard_placement("
        " get_shard_id_for_distribution_column('organizations', %s), s.nodename, s.nodeport, t.nodename, t.nodeport,"
        " 'block_writes')"
        " from pg_dist_node s cross join pg_dist_node t"
        " where s.nodename = %s and t.groupid <> 0 and t.nodename <> s.nodename"
        " and t.nodename = coalesce(%s, t.nodename)",
        [organization_id, before, node],
    )


def test_a_new_installation_is_made_with_custom_plans(client: FlaskClient, company: Organization) -> None:
    """CASES_GENERIC_PLANS is true by default, and Citus has no generic plan for a join."""
    assert get(client, company, company.visitor().path).status_code == 200

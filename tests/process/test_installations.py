"""Several installations behind nginx, by the files of deploy/ and the lines of docs/installations.md."""

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.credentials.api_tokens import new_token
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import init_db
from cases_service.embedded.server import _find_programs
from tests.documents import ROOT, block, run
from tests.factories import LONG_AGO, SECRET_KEY, TABLES, Organization, Visitor, cases_path
from tests.process.conftest import killed_at_end, serve_arguments, short_path
from tests.process.running import COMMAND, LOOPBACK, Answer, Service, environment, wait_for
from tests.process.test_consistency import Walker
from tests.process.test_proxies import Proxy, free_port, program_called
from tests.process.traffic import PAUSE_SECONDS
from tests.process.walks import FILTERS, Judge
from tests.process.writers import World, Writer, serials_of

INSTALLATIONS = "docs/installations.md"


@dataclass
class Installation:
    """A database and the service on it."""

    url: str
    connection: psycopg.Connection
    service: Service

    def organization(self, box: SecretBox) -> Organization:
        return Organization(self.connection, box)


@pytest.fixture(scope="module")
def make_installation(server_url: str, service_role: str, writer_role: str) -> Iterator[Callable[..., Installation]]:
    """Return a function that makes a database and starts a service on it."""
    names: list[str] = []
    services: list[Service] = []
    with psycopg.connect(server_url, autocommit=True) as server, ExitStack() as stack:
        place = stack.enter_context(short_path())

        def make(**variables: str) -> Installation:
            names.append(f"cases_installation_{uuid4().hex[:12]}")
            server.execute(f"create database {names[-1]} template template0 encoding 'UTF8'".encode())
            url = make_conninfo(server_url, dbname=names[-1])
            connection = stack.enter_context(psycopg.connect(url, autocommit=True))
            init_db(connection, service_role=service_role, writer_role=writer_role)
            given = {
                "DATABASE_URL": make_conninfo(url, user=service_role, password=service_role),
                "CASES_WRITE_DATABASE_URL": make_conninfo(url, user=writer_role, password=writer_role),
                "CASES_SECRET_KEY": SECRET_KEY,
                "CASES_TRUSTED_HOPS": "1",
                "CASES_WORKERS": "1",
            }
            services.append(Service(serve_arguments(), environment(**(given | variables)), place, cwd=place))
            return Installation(url, connection, services[-1])

        with killed_at_end(services):
            yield make
        stack.close()
        for name in names:
            server.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="module")
def one(make_installation: Callable[..., Installation]) -> Installation:
    return make_installation()


@pytest.fixture(scope="module")
def two(make_installation: Callable[..., Installation]) -> Installation:
    return make_installation()


class Front(Proxy):
    """nginx in front of two installations."""

    place: Path

    def route(self, routes: dict[UUID, str]) -> None:
        """Write the list of organizations, in the form of the document."""
        lines = [f"{organization} {installation}\n" for organization, installation in routes.items()]
        (self.place / "installations.txt").write_text("# installations.txt\n" + "".join(lines))

    @property
    def pid_file(self) -> Path:
        return self.place / "nginx.pid"

    def reload(self) -> None:
        """Take the list over as the document says, and wait until the old worker has gone."""
        line = block(INSTALLATIONS, "bash", "kill -HUP").partition("\n")
        assert line[0].startswith("sed -i")
        run(line[2], self.place, NGINX=str(self.place), NGINX_PID=str(self.pid_file))


@pytest.fixture
def make_front(place: Path) -> Iterator[Callable[..., Front]]:
    """Return a function that starts nginx, made as the document says, with an empty list.

    `place` has deploy/ as the project has it.
    """
    fronts: list[Front] = []
    program = program_called("nginx")
    shutil.copytree(ROOT / "deploy", place / "deploy")
    (place / "installations.txt").write_text("")

    def make(one: int, two: int) -> Front:
        run(block(INSTALLATIONS, "bash", "nginx-installations.conf"), place, NGINX=str(place))
        port = free_port()
        change(place / "nginx.conf", {"listen 80;": f"listen {LOOPBACK}:{port};", "/dev/stdout": f"{place}/access.log"})
        change(place / "nginx-installations.conf", {":8000;": f":{one};", ":8001;": f":{two};"})
        options = f"daemon off; pid {place}/nginx.pid;"
        arguments = [program, "-e", "stderr", "-p", str(place), "-c", str(place / "nginx.conf"), "-g", options]
        front = Front(arguments, environment(HOME=str(place)), place, cwd=place)
        front.number, front.place = port, place
        fronts.append(front)
        wait_for(front.is_listening, lambda: front.process.poll() is not None, front)
        return front

    yield make
    for front in fronts:
        front.end()


def change(file: Path, changes: dict[str, str]) -> None:
    text = file.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture
def front(make_front: Callable[..., Front], one: Installation, two: Installation) -> Front:
    for installation in (one, two):
        installation.service.wait_until_ready()
    return make_front(one.service.port, two.service.port)


def authorized(token: str, *more: str) -> tuple[str, ...]:
    return ("--header", f"Authorization: Token {token}", *more)


def sent(document: Any, method: str = "POST", kind: str = "application/json") -> tuple[str, ...]:
    return ("--request", method, "--header", f"Content-Type: {kind}", "--data-binary", json.dumps(document))


def without_request_id(answer: Answer) -> tuple[int, dict[str, Any]]:
    return answer.status, {name: value for name, value in answer.json.items() if name != "request_id"}


def visitor_of(organization: Organization, cases: int = 5) -> Visitor:
    visitor = organization.visitor()
    visitor.cases(cases)
    return visitor


ALL_SCOPES = ("visitors:read", "visitors:write", "cases:read", "cases:write")


def test_each_organization_is_answered_by_its_installation(
    front: Front, one: Installation, two: Installation, box: SecretBox
) -> None:
    visitors = [visitor_of(each.organization(box)) for each in (one, two, one, two)]
    front.route({visitor.organization.id: name for visitor, name in zip(visitors, ("one", "two") * 2, strict=True)})
    front.reload()
    for visitor in visitors:
        organization = visitor.organization
        token = organization.token_with(*ALL_SCOPES)
        first = front.url(f"{visitor.path}?ordering=created_at&page_size=2")
        assert walk(front, first, token) == walk_of(visitor)
        case_id = walk_of(visitor)[0]
        for spelling in (str(organization.id), str(organization.id).upper()):
            answer = front.curl(f"/api/v5/orgs/{spelling}/cases/{case_id}", *authorized(token))
            assert (answer.status, answer.json["id"]) == (200, case_id)
        made = front.curl(organization.cases_path, *authorized(token), *sent({"case_number": "made", "priority": 3}))
        assert made.status == 201
        assert made.headers["location"].startswith(front.url("/api/v5/orgs/"))
        message = front.curl(f"{visitor.path}/{case_id}/messages", *authorized(token), *sent({"text": "Any news?"}))
        assert message.status == 201
        line = {"type": "visitor", "id": str(uuid4()), "external_id": "imported"}
        imported = front.curl(
            f"/api/v5/orgs/{organization.id}/import",
            *authorized(token),
            *sent(line, kind="application/x-ndjson"),
        )
        assert (imported.status, imported.json["written"]["visitor"]) == (200, 1)
        events = front.curl(f"/api/v5/orgs/{organization.id}/events", *authorized(token)).json
        assert [event["message"]["id"] for event in events["results"]] == [message.json["id"]]


def walk(front: Front, url: str | None, token: str) -> list[str]:
    """Return the ids of the cases of a page and of those that its links lead to."""
    found = []
    while url:
        assert url.startswith(front.url("/api/v5/orgs/"))
        page = front.curl(url.removeprefix(front.url("")), *authorized(token)).json
        found += [case["id"] for case in page["results"]]
        url = page["next"]
    return found


def walk_of(visitor: Visitor) -> list[str]:
    rows = visitor.organization.connection.execute(
        "select id from cases where organization_id = %s and contact_id = any(%s) order by created_at, id",
        [visitor.organization.id, visitor.contact_ids],
    )
    return [str(case_id) for (case_id,) in rows]


def test_what_is_refused_is_refused_as_by_one_installation(
    front: Front, one: Installation, two: Installation, box: SecretBox
) -> None:
    """No answer tells where an organization is, or whether there is one."""
    here, beside, there = (each.organization(box) for each in (one, one, two))
    front.route({here.id: "one", beside.id: "one", there.id: "two"})
    front.reload()
    nowhere = uuid4()
    for organization in (here, there):
        others = {here.id, beside.id, there.id, nowhere} - {organization.id}
        for rest in ("external-visitors/-/cases", "cases", "events", "import"):
            paths = [f"/api/v5/orgs/{each}/{rest}" for each in others]
            answers = [without_request_id(front.curl(path, *authorized(organization.token))) for path in paths]
            assert answers == [answers[0]] * 3
            assert (answers[0][0], answers[0][1]["code"]) == (403, "organization_forbidden")
    organizations = (here.id, there.id, nowhere)
    for token in (*map(new_token, organizations), "cst_mistyped"):
        answers = [without_request_id(front.curl(cases_path(each, "-"), *authorized(token))) for each in organizations]
        assert answers == [answers[0]] * 3
        assert (answers[0][0], answers[0][1]["code"]) == (401, "api_token_invalid")
    answers = [without_request_id(front.curl(cases_path(each, "-"))) for each in organizations]
    assert answers == [answers[0]] * 3
    assert (answers[0][0], answers[0][1]["code"]) == (401, "authentication_required")


def test_what_is_nobodys_is_answered_without_a_token(front: Front) -> None:
    for path in ("/docs", "/openapi.json", "/healthz"):
        assert front.curl(path).status == 200
    for path in ("/readyz", "/metrics", "/readyz/", "/metrics/"):
        assert front.curl(path).status == 404


@pytest.mark.parametrize("away", ["one", "two"])
def test_an_installation_that_is_away_costs_its_own_organizations_alone(
    away: str, make_front: Callable[..., Front], one: Installation, two: Installation, box: SecretBox
) -> None:
    visitors = {"one": visitor_of(one.organization(box)), "two": visitor_of(two.organization(box))}
    ports = {"one": one.service.port, "two": two.service.port} | {away: free_port()}
    front = make_front(**ports)
    front.route({visitor.organization.id: name for name, visitor in visitors.items()})
    front.reload()
    for name, visitor in visitors.items():
        for _ in range(5):
            status = front.curl(visitor.path, *authorized(visitor.organization.token)).status
            assert status == (502 if name == away else 200)


def test_a_database_that_is_away_costs_its_own_organizations_alone(
    front: Front, one: Installation, two: Installation, box: SecretBox, server_url: str
) -> None:
    visitors = [visitor_of(each.organization(box)) for each in (one, two)]
    front.route({visitor.organization.id: name for visitor, name in zip(visitors, ("one", "two"), strict=True)})
    front.reload()
    name = two.connection.info.dbname
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"alter database {name} allow_connections false".encode())
        ours = two.connection.info.backend_pid
        server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> %s", [name, ours]
        )
        answers = [front.curl(visitor.path, *authorized(visitor.organization.token)) for visitor in visitors]
        server.execute(f"alter database {name} allow_connections true".encode())
    assert [answer.status for answer in answers] == [200, 503]
    assert answers[1].headers["retry-after"] == "1"


def test_the_limits_and_the_log_are_those_of_one_installation(
    front: Front, two: Installation, box: SecretBox, place: Path
) -> None:
    visitor = visitor_of(two.organization(box))
    organization = visitor.organization
    front.route({organization.id: "two"})
    front.reload()
    token = organization.token_with("cases:write")
    for path, size, allowed in (
        (f"/api/v5/orgs/{organization.id}/import", 15 * 2**20, True),
        (f"/api/v5/orgs/{organization.id}/import", 17 * 2**20, False),
        (f"/api/v5/orgs/{organization.id}/cases", 2**20 + 4096, False),
    ):
        (place / "body").write_bytes(b" " * size)
        kind = ("--header", "Content-Type: application/x-ndjson", "--header", "Expect:")
        options = (*kind, "--data-binary", f"@{place}/body")
        status = front.curl(path, *authorized(token), *options).status
        assert status == (200 if allowed else 413), (path, size)
    jwt = organization.jwt(visitor.external_id)
    assert front.curl(cases_path(organization.id, jwt), *authorized(organization.token)).status == 200
    wait_for(lambda: (place / "access.log").read_text().count("GET 200") == 1)
    logs = front.log + front.out + (place / "access.log").read_text()
    for secret in (jwt.partition(".")[0], "external-visitors", organization.token, token, str(organization.id)):
        assert secret not in logs


def test_organizations_whose_tokens_begin_alike_are_told_apart(
    front: Front, one: Installation, two: Installation
) -> None:
    """nginx looks a name up without regard to case, and base64 is not."""
    routes = {UUID(int=number): "one" if number % 3 else "two" for number in (*range(300), 2**128 - 1)}
    front.route(routes)
    front.reload()
    for organization in (UUID(int=0), UUID(int=0x68), UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=2**128 - 1)):
        asked = str(uuid4())
        token = new_token(organization)
        front.curl(cases_path(organization, "-"), *authorized(token, "--header", f"X-Request-ID: {asked}"))
        wait_for(partial(any_says, [one.service, two.service], asked))
        assert asked in {"one": one, "two": two}[routes[organization]].service.log


def any_says(services: list[Service], text: str) -> bool:
    return any(text in service.log for service in services)


@pytest.mark.parametrize("scheme", ["Token ", "token ", "BEARER  ", "Bearer "])
def test_every_spelling_that_the_service_takes_finds_its_installation(
    scheme: str, front: Front, two: Installation, box: SecretBox
) -> None:
    visitor = visitor_of(two.organization(box))
    front.route({visitor.organization.id: "two"})
    front.reload()
    assert front.curl(visitor.path, "--header", f"Authorization: {scheme}{visitor.organization.token}").status == 200


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("53b97666-d364-5ae6-931e-d7745d57c1ac", ":1: expected an organization's id"),
        ("\n53b97666d3645ae6931ed7745d57c1ac one", ":2: expected an organization's id"),
        ("53b97666-d364-5ae6-931e-d7745d57c1ac one; }", ":1: expected an organization's id"),
        ("53b97666-d364-5ae6-931e-d7745d57c1ac one\n53B97666-D364-5AE6-931E-D7745D57C1AC two", ":2: 53b97666"),
    ],
)
def test_a_list_that_is_wrong_makes_no_map(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(text)
    (tmp_path / "map").write_text("as it was")
    program = str(ROOT / "deploy/route-organizations")
    ran = subprocess.run([program, "list", "map"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, (tmp_path / "map").read_text()) == (1, "as it was")
    assert f"list{complaint}" in ran.stderr


def test_the_list_of_the_document_is_one(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(block(INSTALLATIONS, "text", "installations.txt"))
    run(f"{ROOT}/deploy/route-organizations list map", tmp_path)
    assert [line.split()[1] for line in (tmp_path / "map").read_text().splitlines()] == ["one;", "two;"]


@dataclass
class Move:
    """An organization that is to move from one installation to the other, and its commands."""

    organization: Organization
    token: str
    source: Installation
    target: Installation
    place: Path

    @property
    def variables(self) -> dict[str, str]:
        return {
            "ORGANIZATION": str(self.organization.id),
            "FROM_URL": self.source.url,
            "TO_URL": self.target.url,
            "WAIT": "5",
        }

    def copy(self) -> str:
        return run(block(INSTALLATIONS, "bash", "move-organization copy"), self.place, **self.variables)

    def open_and_remove(self) -> None:
        run(block(INSTALLATIONS, "bash", "move-organization remove"), self.place, **self.variables)

    def cancel(self) -> None:
        run(block(INSTALLATIONS, "bash", "move-organization cancel"), self.place, **self.variables)

    def status(self) -> list[str]:
        return run(block(INSTALLATIONS, "bash", "move-organization status"), self.place, **self.variables).splitlines()

    def attempt(self, command: str, **variables: str) -> tuple[int, str]:
        """Return the exit status of a command and what it says on standard error."""
        path = f"{_find_programs(None)}:{os.environ['PATH']}"
        ran = subprocess.run(
            [str(ROOT / "deploy/move-organization"), command, str(self.organization.id)],
            env=environment(**{**self.variables, "PATH": path, **variables}),
            check=False,
            capture_output=True,
            text=True,
        )
        return ran.returncode, ran.stderr

    def rows_at(self, installation: Installation) -> dict[str, list[Any]]:
        """Return every row of the organization, without when a token or key was last used."""
        return {table: rows_of(installation.connection, table, self.organization.id) for table in TABLES}


def rows_of(connection: psycopg.Connection, table: str, organization_id: UUID) -> list[Any]:
    statement = sql.SQL(
        "select to_jsonb(t) - 'last_used_at' from {} t where organization_id = %s order by to_jsonb(t)::text"
    )
    return [row for (row,) in connection.execute(statement.format(sql.Identifier(table)), [organization_id])]


@pytest.fixture
def move(one: Installation, two: Installation, box: SecretBox, place: Path) -> Move:
    """An organization with something in each table, beside others of both installations."""
    for installation in (one, two):
        furnish(installation.organization(box))
    organization = one.organization(box)
    furnish(organization)
    if not (place / "deploy").exists():
        shutil.copytree(ROOT / "deploy", place / "deploy")
    return Move(organization, organization.token_with(*ALL_SCOPES), one, two, place)


def furnish(organization: Organization) -> None:
    """Fill every table, with texts that a copy could spoil."""
    visitor = organization.visitor("tab\t, newline\n, \\N, \\. and \u00e9 \U0001f600", contacts=2)
    visitor.contact(first_name='"', last_name="NULL", email="", phone="\\")
    stage = organization.stage("\r\n")
    author = organization.user(first_name=" ", email=None)
    given: dict[str, Any] = {"case_funnel_stage_id": stage, "owner_id": author, "description": "\\.\n\\."}
    cases = [organization.case(visitor.contact_ids[0], priority=n, **given) for n in (1, 5)]
    cases += [organization.case(None, status="Closed", case_number=number) for number in ("\\N", ",")]
    organization.token_with("cases:read", "cases:write")
    organization.public_key("EdDSA", "-----BEGIN PUBLIC KEY-----\n")
    organization.import_run()
    organization.insert(
        "removed_rows", organization_id=organization.id, record_type="case", id=uuid4(), updated_at=LONG_AGO
    )
    organization.insert("erasure_keys", organization_id=organization.id, key=bytes(range(32)))
    organization.insert(
        "erased_visitors", organization_id=organization.id, external_id_hash=bytes(32), erased_at=LONG_AGO
    )
    organization.insert("event_positions", organization_id=organization.id, last_position=7, pruned_position=3)
    for number, is_private in enumerate((False, True)):
        activity, message = uuid4(), uuid4()
        of_case = {"organization_id": organization.id, "case_id": cases[0], "created_at": LONG_AGO}
        organization.insert(
            "activities", id=activity, channel="email", updated_at=LONG_AGO, is_private=is_private, **of_case
        )
        organization.insert(
            "messages",
            id=message,
            activity_id=activity,
            sender_type="user",
            sender_user_id=author,
            text="\t",
            is_private=is_private,
            **of_case,
        )
        organization.insert(
            "events",
            position=6 + number,
            type="message_created",
            external_id=visitor.external_id,
            case_number="c",
            message_id=message,
            **of_case,
        )


def test_an_organization_moves_whole(move: Move) -> None:
    before = move.rows_at(move.source)
    assert min(len(rows) for rows in before.values()) > 0
    others = everybody_else(move)
    said = move.copy()
    assert f"{len(before['messages'])} rows of messages" in said.splitlines()
    assert move.rows_at(move.source) == move.rows_at(move.target) == before
    move.open_and_remove()
    assert move.rows_at(move.target) == before
    assert move.rows_at(move.source) == {table: [] for table in TABLES}
    assert everybody_else(move) == others
    assert (fences(move.source), fences(move.target)) == ([], [])
    assert move.status() == ["FROM: absent, writes free", "TO: there, writes free"]


def everybody_else(move: Move) -> list[dict[str, list[Any]]]:
    """Return the rows of all other organizations."""
    found = []
    for installation in (move.source, move.target):
        organizations = installation.connection.execute(
            "select organization_id from organizations where organization_id <> %s order by 1", [move.organization.id]
        ).fetchall()
        rows = {table: [rows_of(installation.connection, table, o) for (o,) in organizations] for table in TABLES}
        assert organizations
        found.append(rows)
    return found


def fences(installation: Installation) -> list[Any]:
    """Return what the document looks for: triggers that a move has left."""
    return installation.connection.execute(block(INSTALLATIONS, "sql", "pg_trigger").encode()).fetchall()


def test_the_script_moves_every_table_that_belongs_to_an_organization(connection: psycopg.Connection) -> None:
    rows = connection.execute(
        "select relname from pg_class where relrowsecurity and relnamespace = 'public'::regnamespace"
    ).fetchall()
    assert {name for (name,) in rows} == set(TABLES)
    (listed,) = re.findall(r"^TABLES='([^']+)'", (ROOT / "deploy/move-organization").read_text(), re.MULTILINE)
    assert tuple(listed.split()) == TABLES


def test_between_copy_and_open_nobody_writes_anywhere_and_everybody_reads(move: Move, place: Path) -> None:
    move.copy()
    organization, before = move.organization, move.rows_at(move.source)
    case_id, contact_id = before["cases"][0]["id"], before["contacts"][0]["id"]
    for installation in (move.source, move.target):
        service = installation.service
        service.wait_until_ready()
        for answer in (
            service.curl(f"/api/v5/orgs/{organization.id}/cases", *authorized(move.token)),
            service.curl(f"/api/v5/orgs/{organization.id}/cases/{case_id}", *authorized(move.token)),
        ):
            assert answer.status == 200
        for path, *sends in (
            (organization.cases_path, sent({"case_number": "new", "priority": 1})),
            (f"{organization.cases_path}/{case_id}", sent({"priority": 2, "subject": "x"}, "PATCH")),
            (f"{organization.cases_path}/{case_id}", ("--request", "DELETE")),
            (
                f"/api/v5/orgs/{organization.id}/import",
                sent({"type": "contact", "id": contact_id, "email": "x"}, kind="application/x-ndjson"),
            ),
        ):
            answer = service.curl(path, *authorized(move.token), *sends[0])
            assert (answer.status, answer.json["code"]) == (503, "unavailable"), path
            assert answer.headers["retry-after"] == "1"
        for statement, parameters in (
            ("update api_tokens set revoked_at = now() where organization_id = %s", [organization.id]),
            ("update organizations set name = 'x' where organization_id = %s", [organization.id]),
            ("delete from events where organization_id = %s", [organization.id]),
        ):
            with pytest.raises(psycopg.errors.ObjectInUse, match="is being moved"):
                installation.connection.execute(statement.encode(), parameters)
        # A request that reads notes that its token was used.
        noted = "update api_tokens set last_used_at = now() where organization_id = %s"
        assert installation.connection.execute(noted, [organization.id]).rowcount > 0
        other = installation.connection.execute(
            "update organizations set name = name where organization_id <> %s", [organization.id]
        )
        assert other.rowcount > 0
        (place / "user.ndjson").write_text(
            json.dumps({"type": "user", "id": str(uuid4()), "organization_id": str(organization.id)})
        )
        loaded = subprocess.run(
            [COMMAND, "load", "user.ndjson"],
            env=environment(DATABASE_URL=installation.url, CASES_SECRET_KEY=SECRET_KEY),
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (loaded.returncode, "is being moved to another installation" in loaded.stderr) == (75, True)
    assert move.rows_at(move.source) == move.rows_at(move.target) == before
    move.cancel()
    assert move.rows_at(move.target) == {table: [] for table in TABLES}
    assert move.rows_at(move.source) == before
    assert (fences(move.source), fences(move.target)) == ([], [])
    answer = move.source.service.curl(
        organization.cases_path, *authorized(move.token), *sent({"case_number": "new", "priority": 1})
    )
    assert answer.status == 201


def test_each_command_may_be_repeated_and_is_refused_out_of_turn(move: Move) -> None:
    before = move.rows_at(move.source)

    def done(command: str) -> None:
        for _ in range(2):
            assert move.attempt(command) == (0, ""), command

    def refused(command: str, reason: str) -> None:
        was = move.status()
        status, said = move.attempt(command)
        assert (status, reason in said) == (1, True), said
        assert move.status() == was

    refused("open", "copy it first")
    refused("remove", "does not have")
    done("copy")
    assert move.status() == ["FROM: there, writes held", "TO: there, writes held"]
    refused("remove", "is not opened")
    done("cancel")
    assert move.status() == ["FROM: there, writes free", "TO: absent, writes free"]
    done("copy")
    done("open")
    assert move.status() == ["FROM: there, writes held", "TO: there, writes free"]
    refused("copy", "already")
    refused("cancel", "move it back instead")
    done("remove")
    refused("copy", "FROM has no organization")
    refused("cancel", "move it back instead")
    back = replace(move, source=move.target, target=move.source)
    assert [back.attempt(command)[0] for command in ("copy", "open", "remove")] == [0, 0, 0]
    assert (move.rows_at(move.source), move.rows_at(move.target)) == (before, {table: [] for table in TABLES})


@pytest.mark.parametrize(
    "arguments", [[], ["copy"], ["copy", "x"], ["copy", "'; drop table cases; --"], ["go", str(UUID(int=1))]]
)
def test_a_wrong_call_says_how_it_is_called(arguments: list[str]) -> None:
    ran = subprocess.run(
        [str(ROOT / "deploy/move-organization"), *arguments],
        env=environment(FROM_URL="host=/nowhere", TO_URL="host=/nowhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "move-organization COMMAND ORGANIZATION" in ran.stderr


def test_a_database_that_is_away_is_to_be_tried_again(move: Move) -> None:
    before = move.rows_at(move.source)
    for name in ("FROM_URL", "TO_URL"):
        status, said = move.attempt("copy", **{name: "host=/nowhere"})
        assert (status, f"cannot look at {name.removesuffix('_URL')}" in said) == (75, True)
    assert move.rows_at(move.source) == before
    assert fences(move.source) == []


def test_what_is_being_written_is_waited_for_and_comes_along(move: Move) -> None:
    """A transaction of another organization that lasts too long is named by its table, and stops nobody's requests."""
    with psycopg.connect(move.source.url) as writer:
        writer.execute("update cases set priority = 4 where organization_id = %s", [move.organization.id])
        status, said = move.attempt("copy", WAIT="1")
        assert (status, "gave up waiting for others who write to cases" in said) == (75, True)
        assert move.rows_at(move.target) == {table: [] for table in TABLES}
        with ThreadPoolExecutor(1) as pool:
            copying = pool.submit(move.attempt, "copy", WAIT="60")
            writer.execute("select pg_sleep(1)")
            assert not copying.done()
            writer.commit()
            assert copying.result() == (0, "")
    assert {case["priority"] for case in move.rows_at(move.target)["cases"]} == {4}
    move.cancel()


def test_a_copy_that_is_not_what_was_read_is_not_kept(move: Move) -> None:
    """As if a server or a trigger spoilt one letter on the way."""
    move.target.connection.execute(
        "create or replace function spoil() returns trigger language plpgsql as"
        " $$ begin new.text := 'spoilt'; return new; end $$"
    )
    move.target.connection.execute(
        "create trigger a_spoil before insert on messages for each row execute function spoil()"
    )
    try:
        status, said = move.attempt("copy")
    finally:
        move.target.connection.execute("drop trigger a_spoil on messages")
    assert (status, "what arrived is not what was sent: messages" in said) == (1, True)
    assert move.rows_at(move.target) == {table: [] for table in TABLES}
    assert move.status() == ["FROM: there, writes held", "TO: absent, writes held"]
    move.copy()
    assert move.rows_at(move.target) == move.rows_at(move.source)
    move.cancel()


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_copy_that_is_cut_off_leaves_nothing(side: str, move: Move) -> None:
    """The connection ends in the middle of the rows: a lock at the source keeps the messages from being read."""
    before = move.rows_at(move.source)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(move.source.url) as other:
        copying = pool.submit(move.attempt, "copy", WAIT="60")
        wait_for(lambda: len(fences(move.source)) >= 2 * (TABLES.index("messages") + 1), copying.done)
        # Whoever waits for this lock waits with lock_timeout, which is longer than this takes.
        other.execute("lock table messages in access exclusive mode")
        waiting = (
            "select pid from pg_stat_activity where application_name = 'move-organization' and datname = %s"
            " and backend_type = 'client backend'"
        )
        busy = {"source": f"{waiting} and wait_event_type = 'Lock'", "target": f"{waiting} and xact_start is not null"}
        installation: Installation = getattr(move, side)
        name = installation.connection.info.dbname

        def find() -> list[Any]:
            return installation.connection.execute(busy[side].encode(), [name]).fetchall()

        [(number,)] = wait_for(find, copying.done, copying)
        installation.connection.execute("select pg_terminate_backend(%s)", [number])
        other.rollback()
        status, said = copying.result()
    assert (status, "nothing was copied" in said) == (75, True)
    assert move.rows_at(move.target) == {table: [] for table in TABLES}
    assert move.rows_at(move.source) == before
    move.copy()
    assert move.rows_at(move.target) == before
    move.cancel()


def test_a_removal_that_is_cut_off_goes_on_and_leads_nowhere_else(move: Move) -> None:
    before = move.rows_at(move.source)
    move.copy()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(move.target.url) as other:
        other.execute("lock table users in share mode")
        cancelling = pool.submit(move.attempt, "cancel")
        waiting = (
            "select pid from pg_stat_activity where application_name = 'move-organization' and wait_event = 'relation'"
        )
        looker = move.target.connection
        [(number,)] = wait_for(lambda: looker.execute(waiting).fetchall(), cancelling.done, cancelling)
        looker.execute("select pg_terminate_backend(%s)", [number])
        status, said = cancelling.result()
    assert (status, "run it again" in said) == (75, True)
    assert move.status() == ["FROM: there, writes held", "TO: there, writes ended"]
    assert move.attempt("open")[0] == move.attempt("copy")[0] == move.attempt("remove")[0] == 1
    move.cancel()
    assert move.rows_at(move.target) == {table: [] for table in TABLES}
    assert move.rows_at(move.source) == before
    assert move.status() == ["FROM: there, writes free", "TO: absent, writes free"]


def test_an_organization_that_the_new_place_has_already_is_not_touched(move: Move) -> None:
    move.target.connection.execute(
        "insert into organizations (organization_id, name, subscription_status) values (%s, 'x', 'active')",
        [move.organization.id],
    )
    status, said = move.attempt("copy")
    assert (status, "already" in said) == (1, True)
    assert fences(move.source) == fences(move.target) == []


def test_two_schemas_do_not_go_together(move: Move) -> None:
    connection = move.target.connection
    for change, undo in (
        ("alter table users add column extra text", "alter table users drop column extra"),
        ("update schema_version set version = version - 1", "update schema_version set version = version + 1"),
    ):
        connection.execute(change.encode())
        status, said = move.attempt("copy")
        connection.execute(undo.encode())
        assert (status, "different schemas" in said) == (1, True)
        assert fences(move.source) == fences(move.target) == []


def test_another_secret_key_opens_what_has_moved(
    make_installation: Callable[..., Installation], one: Installation, box: SecretBox, place: Path
) -> None:
    shutil.copytree(ROOT / "deploy", place / "deploy")
    own = base64.urlsafe_b64encode(b"o" * 32).decode()
    target = make_installation(CASES_SECRET_KEY=f"{own},{SECRET_KEY}")
    organization = one.organization(box)
    visitor = visitor_of(organization)
    move = Move(organization, organization.token, one, target, place)
    move.copy()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("cases-service doctor", place, DATABASE_URL=target.url, CASES_SECRET_KEY=own)
    assert f"{organization.kid}" in failed.value.stdout
    both = {"DATABASE_URL": target.url, "CASES_SECRET_KEY": f"{own},{SECRET_KEY}"}
    move.open_and_remove()
    target.service.wait_until_ready()
    assert target.service.curl(visitor.path, *authorized(organization.token)).status == 200
    run("cases-service rotate-secrets", place, **both)
    ((sealed,),) = target.connection.execute(
        "select encrypted_secret from signing_keys where organization_id = %s", [organization.id]
    ).fetchall()
    bound = {"organization_id": organization.id, "key_id": organization.kid, "algorithm": "HS256"}
    assert SecretBox([own]).open(sealed, **bound) == organization.secret
    assert target.service.curl(visitor.path, *authorized(organization.token)).status == 200


def test_the_role_of_the_commands_may_move_an_organization(move: Move, server_url: str) -> None:
    """cases_admin, to whom row security holds, and who may take the owner's place."""
    name = f"c{uuid4().hex[:12]}"
    owner, admin = f"{name}_owner", f"{name}_admin"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create role {owner} nologin".encode())
        server.execute(f"create role {admin} login noinherit password 'secret'".encode())
        server.execute(f"grant {owner} to {admin}".encode())
        server.execute(f"create database {name} owner {owner} template template0 encoding 'UTF8'".encode())
        try:
            url = make_conninfo(server_url, dbname=name, user=admin, password="secret")
            with psycopg.connect(url, autocommit=True) as connection:
                init_db(connection)
            with psycopg.connect(make_conninfo(server_url, dbname=name), autocommit=True) as connection:
                theirs = replace(move.target, url=url, connection=connection)
                before = move.rows_at(move.source)
                there = replace(move, target=theirs)
                assert [there.attempt(command) for command in ("copy", "open", "remove")] == [(0, "")] * 3
                assert there.rows_at(theirs) == before
                back = replace(move, source=theirs, target=move.source)
                assert [back.attempt(command) for command in ("copy", "open", "remove")] == [(0, "")] * 3
                assert there.rows_at(theirs) == {table: [] for table in TABLES}
            assert move.rows_at(move.source) == before
        finally:
            server.execute(f"drop database {name} with (force)".encode())
            server.execute(f"drop role {admin}".encode())
            server.execute(f"drop role {owner}".encode())


def test_a_file_is_divided_by_the_list(place: Path) -> None:
    here, there = UUID(int=1), UUID(int=2)
    (place / "installations.txt").write_text(f"# a list\n{here} one\n{there} two # here\n")
    lines = [
        {"type": kind, "id": str(here if kind == "organization" else UUID(int=9)), "organization_id": str(here).upper()}
        for kind in ("organization", "user")
    ]
    lines.append({"type": "user", "id": "7", "organization_id": str(there)})
    del lines[0]["organization_id"]
    (place / "export.ndjson.gz").write_bytes(gzip.compress("\n\n".join(map(json.dumps, lines)).encode() + b"\n"))
    divide = block(INSTALLATIONS, "bash", "export.ndjson.gz")
    run(divide, place)
    found = {name: (place / f"{name}.ndjson").read_text().splitlines() for name in ("one", "two")}
    assert {name: [json.loads(line) for line in read] for name, read in found.items()} == {
        "one": lines[:2],
        "two": lines[2:],
    }
    (place / "export.ndjson.gz").write_bytes(
        gzip.compress(json.dumps({"type": "organization", "id": str(UUID(int=3))}).encode())
    )
    with pytest.raises(subprocess.CalledProcessError):
        run(divide, place)


def test_each_part_is_loaded_into_its_installation(place: Path, one: Installation, two: Installation) -> None:
    for name, installation in (("one", one), ("two", two)):
        (place / f"{name}.env").write_text(f"DATABASE_URL='{installation.url}'\nCASES_SECRET_KEY={SECRET_KEY}\n")
        line = {"type": "organization", "id": str(uuid4()), "name": f"of {name}", "subscription_status": "active"}
        (place / f"{name}.ndjson").write_text(json.dumps(line))
    run(block(INSTALLATIONS, "bash", "cases-service load"), place)
    for name, installation in (("one", one), ("two", two)):
        named = installation.connection.execute("select name from organizations where name like 'of %'").fetchall()
        assert named == [(f"of {name}",)]


class Correspondent:
    """A customer who writes messages through the proxy, and a follower of the organization's events."""

    def __init__(self, front: Front, visitor: Visitor, token: str) -> None:
        self.said: list[str] = []
        self.followed: list[dict[str, Any]] = []
        self.refused = 0
        self._front = front
        self._path = f"{visitor.path}/{visitor.cases(1)[0]}/messages"
        self._events = f"/api/v5/orgs/{visitor.organization.id}/events"
        self._authorized = authorized(token)
        self._said_all = threading.Event()

    def write(self, until: threading.Event) -> None:
        """Say one thing after the other, each until it is taken."""
        try:
            while not until.is_set():
                self._say({"id": str(uuid4()), "text": f"This is {len(self.said)}."})
        finally:
            self._said_all.set()

    def _say(self, message: dict[str, str]) -> None:
        answer = self._front.curl(self._path, *self._authorized, *sent(message))
        while answer.status == 503:
            assert answer.headers["retry-after"] == "1"
            self.refused += 1
            time.sleep(PAUSE_SECONDS)
            answer = self._front.curl(self._path, *self._authorized, *sent(message))
        assert answer.status == 201, answer
        self.said.append(message["id"])

    def follow(self, until: threading.Event) -> None:
        """Read events, each once, from the last position on, until all that was said is there."""
        last = 0
        while not (self._said_all.is_set() and len(self.followed) >= len(self.said)):
            page = self._front.curl(f"{self._events}?after={last}", *self._authorized)
            assert page.status == 200, page
            last = page.json["last"]
            self.followed += page.json["results"]

    def judge(self) -> None:
        """Check that what was said and acknowledged came as an event, once and in order."""
        assert [event["message"]["id"] for event in self.followed] == self.said
        assert [event["position"] for event in self.followed] == list(range(1, len(self.said) + 1))


class Commotion:
    """Readers and writers of two organizations that look the same, of which one moves and one stays."""

    def __init__(self, front: Front, one: Installation, two: Installation) -> None:
        self.world = World.make(one.connection)
        self.moves, self.stays = dict.fromkeys(visitor.organization for visitor in self.world.visitors)
        self.move = Move(self.moves, self.moves.token_with(*ALL_SCOPES), one, two, front.place)
        self.place_of = {self.moves.id: one, self.stays.id: one}
        front.route({self.moves.id: "one", self.stays.id: "one"})
        front.reload()
        keys = list(self.world.journal.histories)
        self.writers = [
            Writer(
                self._connector(each.id), self.world.journal, [key for key in some if key.organization_id == each.id]
            )
            for each in (self.moves, self.stays)
            for some in (keys[::2], keys[1::2])
        ]
        self.walkers = [Walker(front, self.world, lag=0) for _ in range(3)]
        # The judge of walks knows nothing of this customer.
        self.correspondent = Correspondent(front, self.moves.visitor("caller"), self.move.token)

    def _connector(self, organization_id: UUID) -> Callable[[], psycopg.Connection]:
        return lambda: psycopg.connect(self.place_of[organization_id].url)

    def rage(self, *steps: Callable[[], object]) -> None:
        """Let everybody work, and do each step in the middle of it."""
        for writer in self.writers:
            writer.populate()
        stop = threading.Event()
        work = [writer.write for writer in self.writers] + [walker.walk for walker in self.walkers]
        work += [self.correspondent.write, self.correspondent.follow]
        with ThreadPoolExecutor(len(work)) as pool:
            jobs = [pool.submit(each, stop) for each in work]
            try:
                self._wait_for_walks(jobs)
                for step in steps:
                    step()
                    self._wait_for_walks(jobs)
            finally:
                stop.set()
            for job in jobs:
                job.result()

    def _wait_for_walks(self, jobs: list[Future[None]]) -> None:
        goals = [len(walker.walks) + 4 for walker in self.walkers]

        def are_done() -> bool:
            return all(len(walker.walks) >= goal for walker, goal in zip(self.walkers, goals, strict=True))

        wait_for(lambda: are_done() or any(job.done() for job in jobs), seconds=300)

    def judge(self) -> None:
        """Walk once more, now that all is quiet, and hold everything against what was committed."""
        for visitor in self.world.visitors:
            self.walkers[0].there_and_back(visitor, "created_at", FILTERS[0], page_size=7)
        judge = Judge(self.world.journal)
        for walker in self.walkers:
            walker.close()
            assert walker.outcome.wrong == []
            assert set(walker.outcome.statuses) == {"200"}
            assert [problem for walk in walker.walks for problem in judge.judge(walk).wrong] == []
        committed = {key: history.last and history.last.serial for key, history in self.world.journal.histories.items()}
        for organization_id, place in self.place_of.items():
            theirs = {key: serial for key, serial in committed.items() if key.organization_id == organization_id}
            assert serials_of(place.connection, theirs) == theirs
        self.correspondent.judge()


def test_an_organization_moves_under_readers_and_writers_without_a_wrong_answer(
    front: Front, one: Installation, two: Installation
) -> None:
    """Walks and events go on over the switch, no read is refused, and no write that was acknowledged is lost.

    Another organization with the same visitors and ids stays where it is.
    """
    commotion = Commotion(front, one, two)
    move = commotion.move
    nginx = {"NGINX": str(front.place), "NGINX_PID": str(front.pid_file), "NEW": "two"}

    def switch() -> None:
        run(block(INSTALLATIONS, "bash", "kill -HUP"), front.place, **nginx, **move.variables)

    def open_and_remove() -> None:
        commotion.place_of[move.organization.id] = two
        move.open_and_remove()

    commotion.rage(move.copy, switch, open_and_remove)
    commotion.judge()
    assert commotion.correspondent.refused > 0
    assert move.rows_at(one) == {table: [] for table in TABLES}
    assert (front.place / "organizations.map").read_text().count("two;") == 1


def test_a_cursor_and_a_condition_after_the_move(
    front: Front, one: Installation, two: Installation, box: SecretBox
) -> None:
    """Links lead on, a poll reads the same once more, and a write may name what was read before the move."""
    organization = one.organization(box)
    visitor = visitor_of(organization)
    move = Move(organization, organization.token_with(*ALL_SCOPES), one, two, front.place)
    front.route({organization.id: "one"})
    front.reload()
    ids = walk_of(visitor)
    first = front.curl(f"{visitor.path}?page_size=2&ordering=created_at", *authorized(move.token))
    case = front.curl(f"{organization.cases_path}/{first.json['results'][0]['id']}", *authorized(move.token))
    move.copy()
    front.route({organization.id: "two"})
    front.reload()
    move.open_and_remove()
    assert [case["id"] for case in first.json["results"]] + walk(front, first.json["next"], move.token) == ids
    polled = front.curl(
        f"{visitor.path}?page_size=2&ordering=created_at",
        *authorized(move.token, "--header", f"If-None-Match: {first.headers['etag']}"),
    )
    assert (polled.status, polled.json["results"]) == (200, first.json["results"])
    path = f"{organization.cases_path}/{case.json['id']}"
    written = front.curl(
        path, *authorized(move.token, "--header", f"If-Match: {case.headers['etag']}"), *sent({"priority": 5}, "PATCH")
    )
    assert (written.status, written.json["priority"]) == (200, 5)

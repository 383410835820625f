"""Nothing secret comes out, whatever goes in and whatever goes wrong.

A service on a PostgreSQL of its own, with a password, is asked everything that could make it say too much: good and
hostile requests, malformed HTTP, a database that fails in every way, crashes in a view and in the serializer, workers
that are killed. Then all that came out is searched for what must not: its log, the answers, the commands' output, the
titles of all processes, what PostgreSQL shows of its sessions, and PostgreSQL's own log.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.credentials import administration
from cases_service.credentials.api_tokens import new_token
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import init_db
from cases_service.embedded.server import EmbeddedServer, join
from cases_service.embedded.supervisor import CLUSTER, LOG
from tests.factories import Organization, Visitor, cases_path, hs256
from tests.process.conftest import killed_at_end, serve_arguments, short_path
from tests.process.embedded_data import FAST, stop
from tests.process.running import COMMAND, Answer, Service, environment, parse_answer, read_all, wait_for
from tests.redis_server import PROGRAM as REDIS
from tests.redis_server import redis_server

DRIVER_MESSAGE = "canary-of-a-driver"
STORED_VALUE = "canary-of-a-row"


FRAGMENT = 16


class Canaries:
    """Every secret of a run, in every form that it may take, whole or in parts."""

    def __init__(self) -> None:
        self._fragments: dict[str, str] = {}

    def add(self, name: str, text: str) -> str:
        """Look for a text, also in hexadecimal, base64 and percent-encoding, and return it."""
        raw = text.encode()
        for form in (
            text,
            raw.hex(),
            base64.b64encode(raw).decode().rstrip("="),
            quote(text, safe=""),
            repr(text)[1:-1],
        ):
            for start in range(0, max(len(form) - FRAGMENT, 0) + 1, FRAGMENT // 2):
                self._fragments[form[start : start + FRAGMENT]] = name
        return text

    def add_jwt(self, name: str, token: str) -> str:
        """Look for each part of a JWT that says or proves something, and return the whole."""
        for part in token.split(".")[1:]:
            if len(part) >= FRAGMENT:
                self.add(name, part)
        return token

    def found_in(self, output: str) -> set[str]:
        return {name for fragment, name in self._fragments.items() if fragment in output}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with short_path() as place:
        server = join(place / "data", settings=FAST)
        try:
            yield server
        finally:
            stop(server)


class World:
    """A database of its own for one run, whose role has to give a password, and what is secret in it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.canaries = canaries = Canaries()
        self.server = server
        self.role = f"service_{secrets.token_hex(4)}"
        self.password = canaries.add("database password", f"pass word/@{secrets.token_hex(8)}")
        self.secret_keys = [self._secret_key(), self._secret_key()]
        self._make_database()
        self.connection = psycopg.connect(self.admin_url, autocommit=True)
        init_db(self.connection)
        self._let_in()
        box = SecretBox(self.secret_keys)
        self.organization = organization = Organization(self.connection, box)
        self.visitor: Visitor = organization.visitor(canaries.add("external id", f"customer-{secrets.token_hex(8)}"))
        self.cases = self.visitor.cases(3)
        canaries.add("API token", organization.token)
        canaries.add("signing secret", organization.secret)
        self.revoked = self._revoked_token()

    def _secret_key(self) -> str:
        return self.canaries.add("secret key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())

    def _make_database(self) -> None:
        """Make the database, and a role that has to prove itself even on the socket."""
        with psycopg.connect(self.server.conninfo, autocommit=True) as connection:
            make = sql.SQL("create role {} login password {}")
            connection.execute(make.format(sql.Identifier(self.role), sql.Literal(self.password)))
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(self.role)))
            rules = self.server.data_dir / CLUSTER / "pg_hba.conf"
            rules.write_text(f"local all {self.role} scram-sha-256\n{rules.read_text()}")
            connection.execute("select pg_reload_conf()")
        self.admin_url = make_conninfo(self.server.conninfo, dbname=self.role)
        host = quote(str(self.server.data_dir / "socket"), safe="")
        self.url = f"postgresql://{self.role}:{quote(self.password, safe='')}@/{self.role}?host={host}&port=5432"

    def _let_in(self) -> None:
        grant = sql.SQL("grant select on all tables in schema public to {}")
        self.connection.execute(grant.format(sql.Identifier(self.role)))

    def _revoked_token(self) -> str:
        organization = self.organization
        token_id, token = administration.create_token(
            self.connection, organization_id=organization.id, user_id=organization.user_id
        )
        administration.revoke_token(self.connection, organization_id=organization.id, token_id=token_id)
        return self.canaries.add("revoked API token", token)

    def jwt(self, external_id: str | None = None, **claims: object) -> str:
        token = self.organization.jwt(external_id or self.visitor.external_id, **claims)
        return self.canaries.add_jwt("JWT", token)

    def variables(self, **more: str) -> dict[str, str]:
        return {"DATABASE_URL": self.url, "CASES_SECRET_KEY": ",".join(self.secret_keys), **more}

    def sessions(self) -> str:
        rows = self.connection.execute("select s::text from pg_stat_activity s where pid <> pg_backend_pid()")
        return "\n".join(row for (row,) in rows)

    def wait_for_a_lock(self) -> None:
        """Wait until a statement of the service waits for what this test has locked."""
        statement = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and usename = %s"
        with psycopg.connect(self.admin_url, autocommit=True) as other:
            wait_for(lambda: other.execute(statement, [self.role]).fetchone() != (0,), seconds=20)

    @contextlib.contextmanager
    def changed(self, forth: str, back: str) -> Iterator[None]:
        self.connection.execute(forth)
        try:
            yield
        finally:
            self.connection.execute(back)


class Run:
    """A running service, asked by sockets, and all that it answered."""

    def __init__(self, service: Service, world: World) -> None:
        self.service, self.world = service, world
        self.answers: list[Answer] = []
        self.seen = ""

    def send(self, request: str) -> Answer | None:
        answer = self.service.send(request.encode("latin-1"))
        if not answer:
            return None
        head, _, body = answer.partition(b"\r\n\r\n")
        self.answers.append(parse_answer(head, body))
        return self.answers[-1]

    def get(self, target: str = "", *headers: str, token: str | None = None, jwt: str | None = None) -> str | None:
        """Ask for the visitor's cases, or for a target of one's own, and return the code of the answer."""
        organization = self.world.organization
        target = target or cases_path(organization.id, "-")
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if not any(header.startswith("Authorization") for header in headers):
            lines.append(f"Authorization: Token {token or organization.token}")
        if "/-/" in target:
            lines.append(f"X-External-Identity: {jwt or self.world.jwt()}")
        answer = self.send("\r\n".join(lines) + "\r\n\r\n")
        assert answer is not None
        return None if answer.status < 400 or not answer.body else answer.json["code"]

    def get_until(self, code: str | None) -> None:
        """Ask until a code comes: a statement whose tables have changed under it costs its connection first."""
        wait_for(lambda: self.get() == code, story=self.service, seconds=20)

    def look_around(self) -> None:
        """Keep what PostgreSQL and the system show of the sessions and processes of this moment."""
        server = int((self.world.server.data_dir / CLUSTER / "postmaster.pid").read_text().partition("\n")[0])
        self.seen += "\n".join([self.world.sessions(), *titles_below(self.service.process.pid, server)])


def titles_below(*pids: int) -> Iterator[str]:
    """Yield the command lines of processes and of all that descend from them, and of no other test's."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
    for pid in parents:
        ancestor = pid
        while ancestor not in (0, *pids):
            ancestor = parents.get(ancestor, 0)
        if ancestor:
            with contextlib.suppress(OSError):
                yield Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


@pytest.fixture
def world(server: EmbeddedServer) -> Iterator[World]:
    world = World(server)
    yield world
    world.connection.close()


@pytest.fixture
def redis_url(world: World) -> Iterator[str]:
    """The address of a Redis with a password, or of memory where there is no Redis."""
    if REDIS is None:
        yield "memory://"
        return
    with redis_server() as redis:
        world.canaries.add("Redis password", redis.password)
        yield redis.url


def ask_well(run: Run) -> None:
    world = run.world
    path = cases_path(world.organization.id, world.jwt())
    for target in ("", path, f"{path}/summary", f"{path}/{world.cases[0]}", f"{path}?page_size=1&status=Open"):
        assert run.get(target) is None
    for target in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        run.get(target)
    assert run.get("", f"If-None-Match: {run.answers[0].headers['etag']}") is None


def ask_badly(run: Run) -> None:
    """Put secrets where they do not belong, and make every error of a request."""
    world, canaries = run.world, run.world.canaries
    organization, jwt = world.organization, run.world.jwt()
    path = cases_path(organization.id, "-")
    foreign = Organization(world.connection, organization.box)
    canaries.add("foreign API token", foreign.token)
    unknown = canaries.add("unknown API token", new_token(organization.id))
    mistyped = canaries.add("mistyped API token", organization.token[:-2] + "__")
    basic = canaries.add("basic credentials", base64.b64encode(f"u:{secrets.token_hex(8)}".encode()).decode())
    forged = canaries.add_jwt("forged JWT", hs256(organization.claims("x"), {"alg": "HS256"}, secrets.token_hex(16)))
    odd = canaries.add_jwt(
        "odd JWT", hs256({"sub": [secrets.token_hex(8)], "exp": 1}, {"alg": "HS256"}, organization.secret)
    )
    stranger = canaries.add("unknown external id", f"stranger-{secrets.token_hex(8)}")
    expected = {
        "authentication_required": run.get(path, f"Authorization: Basic {basic}"),
        "api_token_invalid": run.get(path, token=unknown),
        "organization_forbidden": run.get(path, token=foreign.token),
        "invalid_parameter": run.get(
            f"{path}?{quote(jwt)}={organization.token}&cursor=&page_size={world.password[-8:]}"
        ),
        "invalid_cursor": run.get(f"{path}?cursor={jwt}"),
        "token_malformed": run.get(path, jwt=f"{jwt}!"),
        "token_too_long": run.get(path, jwt=jwt * 60),
        "token_ambiguous": run.get(path, f"X-External-Identity: {jwt}"),
        "token_signature_invalid": run.get(path, jwt=forged),
        "token_claim_invalid": run.get(path, jwt=odd),
        "token_expired": run.get(path, jwt=world.jwt(exp=1)),
        "token_key_unknown": run.get(
            path, jwt=canaries.add_jwt("JWT", organization.signed({}, {"alg": "HS256", "kid": jwt}))
        ),
        "visitor_not_found": run.get(path, jwt=world.jwt(stranger)),
        "case_not_found": run.get(f"{path}/{jwt}"),
        "not_found": run.get(f"/{organization.token}/{jwt}"),
        "host_not_allowed": run.get(f"http://{world.visitor.external_id}{path}"),
    }
    assert list(expected.values()) == list(expected)
    for token in (mistyped, world.revoked):
        assert run.get(path, token=token) == "api_token_invalid"
    secret = organization.token
    for header in ("X-Request-ID", "Cookie", "Referer", "User-Agent", "X-Forwarded-For", "If-None-Match", secret):
        run.get(path, f"{header}: {secret} {jwt}")


def send_malformed(run: Run) -> None:
    world = run.world
    jwt, token = world.jwt(), world.organization.token
    path = cases_path(world.organization.id, jwt)
    start = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Token {token}\r\n"
    for request in (
        f"GET {path} {token} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET {path} HTTP/{token}\r\n\r\n",
        f"{token} {path} HTTP/1.1\r\n\r\n",
        f"{start}{token}\r\n\r\n",
        f"{start}X-External-Identity : {jwt}\r\n\r\n",
        f"{start}X: \0{jwt}\r\n\r\n",
        f"{start}Content-Length: {token}\r\n\r\n",
        f"{start}Transfer-Encoding: {token}\r\n\r\n",
        f"{start}Expect: {token}\r\n\r\n",
        f"{start}X: {token * 1000}\r\n\r\n",
        start + "".join(f"X-{n}: {token}\r\n" for n in range(80)) + "\r\n",
        f"GET {path}{jwt * 60} HTTP/1.1\r\n\r\n",
        f"\x16\x03\x01{token}{jwt}\r\n\r\n",
        f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{token}",
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{token}\r\n{jwt}\r\n",
    ):
        answer = run.send(request)
        assert answer is None or 400 <= answer.status <= 505
    for part in (
        start,
        start + f"X: {jwt}",
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{token}",
    ):
        with run.service.connect() as client:
            client.sendall(part.encode())


def fail_in_the_database(run: Run) -> None:
    """Time-outs, an overloaded pool, and a schema that is not the one that the statements were written for."""
    world = run.world
    with ThreadPoolExecutor(4) as asking, world.connection.transaction():
        world.connection.execute("lock table cases in access exclusive mode")
        waiting: list[Future[str | None]] = [asking.submit(run.get)]
        world.wait_for_a_lock()
        waiting += [asking.submit(run.get) for _ in range(3)]
        run.look_around()
        codes = {answer.result() for answer in waiting}
    assert codes == {"timeout", "overloaded"}
    with world.changed(
        "alter table visitors rename external_id to name", "alter table visitors rename name to external_id"
    ):
        assert run.get() == "unavailable"
    with world.changed(f"revoke select on visitors from {world.role}", f"grant select on visitors to {world.role}"):
        assert run.get() == "unavailable"
    fail = (
        "alter table visitors rename to real_visitors;"
        f"create function fail() returns text language plpgsql as $$ begin raise '{DRIVER_MESSAGE}'; end $$;"
        "create view visitors as select organization_id, id, fail() as external_id from real_visitors;"
        f"grant select on visitors to {world.role}"
    )
    mend = "drop view visitors; drop function fail(); alter table real_visitors rename to visitors"
    with world.changed(fail, mend):
        run.get_until("internal_error")
    run.get_until(None)


def crash(run: Run) -> None:
    """Crash in a view, on keys that nobody can read, and in the serializer, on a value that it does not know."""
    world, organization = run.world, run.world.organization
    path = cases_path(organization.id, "-")
    spoiled, secret = organization.key("HS384")
    world.canaries.add("signing secret", secret)
    organization.update(
        "signing_keys", "id", spoiled, encrypted_secret=world.canaries.add("stored secret", secrets.token_hex(40))
    )
    assert (
        run.get(path, jwt=world.canaries.add_jwt("JWT", hs256({}, {"alg": "HS384"}, secret, "sha384")))
        == "internal_error"
    )
    organization.public_key("RS256", f"-----BEGIN PUBLIC KEY-----\n{STORED_VALUE}\n-----END PUBLIC KEY-----")
    assert run.get(path, jwt=world.canaries.add_jwt("JWT", hs256({}, {"alg": "RS256"}, secret))) == "internal_error"
    # Dropped with all that stands on it, which nobody needs any more.
    world.connection.execute("alter table cases drop column priority cascade")
    world.connection.execute(f"alter table cases add priority text not null default '{STORED_VALUE}'")
    run.get_until("internal_error")


def end_workers(run: Run) -> None:
    """Kill workers with requests in them, in the ways that gunicorn has and in one that it has not."""
    world, service = run.world, run.service
    for number in (signal.SIGABRT, signal.SIGKILL):
        *_, worker = service.workers()
        with world.connection.transaction(), service.connect() as client:
            world.connection.execute("lock table visitors in access exclusive mode")
            path = cases_path(world.organization.id, world.jwt())
            authorization = f"Authorization: Token {world.organization.token}"
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n\r\n".encode())
            world.wait_for_a_lock()
            os.kill(worker, number)
            run.seen += read_all(client).decode("latin-1")
        service.wait_until_ready()


def lose_the_database(run: Run) -> None:
    world = run.world
    world.connection.execute(f"alter role {world.role} password 'another'")
    world.connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [world.role])
    assert run.get() == "unavailable"


class Loud(Service):
    """A service on a port that is known without its log, which may be silent."""

    port = 0

    @staticmethod
    def free_port() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
            return port

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs the /proc of Linux")
@pytest.mark.parametrize(
    ("level", "form"),
    [("debug", "json"), ("debug", "console"), ("info", "json"), ("warning", "console"), ("error", "json")],
)
def test_nothing_secret_comes_out(world: World, redis_url: str, place: Path, level: str, form: str) -> None:
    port = Loud.free_port()
    variables = world.variables(
        CASES_LOG_LEVEL=level, CASES_LOG_FORMAT=form, CASES_WORKERS="1", CASES_THREADS="4", CASES_POOL_SIZE="1",
        CASES_POOL_TIMEOUT="0.5", CASES_STATEMENT_TIMEOUT="2", CASES_GRACEFUL_TIMEOUT="9",
        CASES_RATE_LIMIT_TOKEN="1000000/hour", CASES_RATE_LIMIT_FAILED_AUTHENTICATIONS="1000000/hour",
        CASES_RATE_LIMIT_VISITOR="1000000/hour", CASES_RATE_LIMIT_STORAGE=redis_url,
    )  # fmt: skip
    service = Loud(serve_arguments(f"127.0.0.1:{port}"), environment(**variables), place, cwd=place)
    service.port = port
    with killed_at_end([service]):
        wait_for(lambda: is_listening(port), lambda: service.process.poll() is not None, service)
        service.wait_until_ready()
        run = Run(service, world)
        for story in (ask_well, ask_badly, send_malformed, fail_in_the_database, end_workers, crash):
            story(run)
            run.look_around()
        lose_the_database(run)
        if level != "error":
            service.wait_for_log("password authentication failed")
        run.look_around()
        service.end()
    assert_that_it_went_wrong(service, level, form)
    assert_nothing_leaked(run)


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def assert_that_it_went_wrong(service: Service, level: str, form: str) -> None:
    """Check that the log tells of what was forced, so that its silence about the secrets means something."""
    told = ["unexpected_error", "KeyError", "RaiseException", "secret_not_opened", "database_not_set_up"]
    if level != "error":
        told += ["request_refused", "password authentication failed"]
    if level in ("debug", "info"):
        told += ["/api/v5/orgs/<uuid:organization_id>/external-visitors/<token>/cases", "token_expired", "overloaded"]
    assert [words for words in told if words not in service.log] == []
    if form == "json":
        assert all(json.loads(line)["level"] for line in service.log.splitlines())


def assert_nothing_leaked(run: Run) -> None:
    canaries = run.world.canaries
    assert canaries.found_in(f"x{run.world.organization.token[30:60]}x")
    for output in (run.service.log, run.service.out):
        assert canaries.found_in(output) == set()
        assert DRIVER_MESSAGE not in output
        assert STORED_VALUE not in output
    server_log = (run.world.server.data_dir / LOG).read_text(errors="replace")
    assert DRIVER_MESSAGE in server_log
    assert canaries.found_in(server_log) == set()
    assert run.world.role in run.seen
    assert "gunicorn" in run.seen
    assert canaries.found_in(run.seen) == set()
    for answer in run.answers:
        assert canaries.found_in(json.dumps(answer.headers)) == set()
        # A link of a page has the JWT in its path where the caller had it there.
        expected = {"JWT", "external id"} if answer.status == 200 else set()
        # What a caller calls a parameter comes back to that caller, cut short.
        body = re.sub('"parameter":"[^"]*"', "", answer.body.decode("latin-1"))
        assert canaries.found_in(body) <= expected
        assert DRIVER_MESSAGE not in body
        assert STORED_VALUE not in body
        assert "Traceback" not in body


@pytest.mark.parametrize(
    "name", ["load", "load a key", "check-token", "rotate-secrets", "init-db", "a wrong URL", "a wrong key"]
)
def test_a_command_that_fails_quotes_no_secret(world: World, place: Path, name: str) -> None:
    organization, canaries = world.organization, world.canaries
    short = canaries.add("short secret", secrets.token_hex(15))
    other_key = canaries.add("other key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    key = {"type": "signing_key", "id": str(organization.kid), "organization_id": str(organization.id)}
    forged = canaries.add_jwt("forged JWT", hs256(organization.claims("x"), {"alg": "HS256"}, secrets.token_hex(16)))
    admin = {"DATABASE_URL": world.admin_url}
    wrong = {
        "DATABASE_URL": world.url.replace(
            quote(world.password, safe=""), canaries.add("wrong password", secrets.token_hex(16))
        )
    }
    arguments, given, variables = {
        "load": (["load", "-"], json.dumps({**key, "algorithm": "HS256", "secret": organization.secret}), admin),
        "load a key": (["load", "-"], json.dumps({**key, "algorithm": "HS256", "secret": short}), admin),
        "check-token": (["check-token", "--organization", str(organization.id)], forged, admin),
        "rotate-secrets": (["rotate-secrets"], "", {**admin, "CASES_SECRET_KEY": other_key}),
        "init-db": (["init-db"], "", wrong),
        "a wrong URL": (["init-db"], "", {"DATABASE_URL": f"{world.url}?{world.password}"}),
        "a wrong key": (["rotate-secrets"], "", {**admin, "CASES_SECRET_KEY": f"{other_key}{short}"}),
    }[name]
    ran = subprocess.run(
        [COMMAND, *arguments], check=False, input=given, text=True, capture_output=True, cwd=place,
        env=environment(**world.variables(**variables)),
    )  # fmt: skip
    assert ran.returncode == 0 if name == "load" else ran.returncode in (1, 75), ran
    assert "Traceback" not in ran.stderr
    assert canaries.found_in(ran.stdout + ran.stderr) == set()

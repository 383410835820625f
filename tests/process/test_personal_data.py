"""The commands about a person's data as an operator runs them: what they print, ask, and end with."""

import hashlib
import json
import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
import requests
from psycopg.conninfo import make_conninfo

from cases_service.personal_data.erasure import erase_visitor
from tests.factories import LONG_AGO, Organization, Visitor
from tests.process.running import COMMAND, Service, environment
from tests.test_loading import wait_until_blocks

COMMANDS = ("export-visitor", "erase-visitor", "allow-visitor")


class Ran(NamedTuple):
    """What a command has printed, and its status."""

    status: int
    out: bytes
    err: str


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    visitor = organization.visitor(f"Zoë \u2028 {uuid4()}", contacts=2)
    visitor.cases(3)
    return visitor


def run(name: str, visitor: Visitor, url: str, *options: str, **variables: str) -> Ran:
    """Run a command without a terminal."""
    command = [COMMAND, name, *arguments(visitor), *options]
    given = environment(DATABASE_URL=url, **variables)
    ran = subprocess.run(command, env=given, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return Ran(ran.returncode, ran.stdout, ran.stderr.decode())


def arguments(visitor: Visitor) -> tuple[str, ...]:
    return "--organization", str(visitor.organization.id), "--external-id", visitor.external_id


def answer(visitor: Visitor, url: str, words: bytes) -> tuple[int, bytes, str]:
    """Erase at a terminal and answer what it asks: the status, the standard output, and what the terminal shows."""
    terminal, its_end = pty.openpty()
    command = [COMMAND, "erase-visitor", *arguments(visitor)]
    given = environment(DATABASE_URL=url)
    try:
        process = subprocess.Popen(command, stdin=its_end, stdout=subprocess.PIPE, stderr=its_end, env=given)
        os.close(its_end)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(terminal, 65536)
        os.write(terminal, words)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out, (shown + rest_of(terminal)).decode()
    finally:
        os.close(terminal)


def rest_of(terminal: int) -> bytes:
    """Return what is left to be read of a terminal whose other end is closed."""
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        pass  # EIO is its end
    return shown


def is_there(connection: psycopg.Connection, visitor: Visitor) -> bool:
    return connection.execute("select 1 from visitors where id = %s", [visitor.id]).fetchone() is not None


def test_the_receipt_has_the_digest_of_what_an_export_printed(visitor: Visitor, database_url: str) -> None:
    # Whatever the encoding of the output is, lines are UTF-8.
    exported = run("export-visitor", visitor, database_url, PYTHONIOENCODING="ascii")
    assert (exported.status, exported.err) == (0, "")
    assert len(exported.out.splitlines()) == 6
    erased = run("erase-visitor", visitor, database_url, "--yes")
    assert (erased.status, erased.err) == (0, "")
    receipt = json.loads(erased.out)
    assert receipt["sha256"] == hashlib.sha256(exported.out).hexdigest()
    assert receipt["removed"] == {"visitor": 1, "contact": 2, "case": 3, "activity": 0, "message": 0, "event": 0}


def test_without_a_terminal_and_without_yes_it_is_a_wrong_call(
    visitor: Visitor, database_url: str, connection: psycopg.Connection
) -> None:
    ran = run("erase-visitor", visitor, database_url)
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err == (
        "cases-service: give --yes: without a terminal, nobody can be asked (see cases-service erase-visitor --help)\n"
    )
    assert is_there(connection, visitor)


def test_at_a_terminal_it_asks(visitor: Visitor, database_url: str, connection: psycopg.Connection) -> None:
    status, out, shown = answer(visitor, database_url, b"n\n")
    assert (status, out) == (1, b"")
    assert "with 2 contacts and 3 cases" in shown
    # What would control the terminal is shown in escapes.
    assert "\\u2028" in shown
    assert shown.endswith("cases-service: nothing was erased\r\n")
    assert is_there(connection, visitor)
    status, out, _ = answer(visitor, database_url, b"y\n")
    assert (status, json.loads(out)["lines"]) == (0, 6)
    assert not is_there(connection, visitor)


def test_who_interrupts_the_question_erases_nothing(
    visitor: Visitor, database_url: str, connection: psycopg.Connection
) -> None:
    status, out, _ = answer(visitor, database_url, b"\x04")
    assert (status, out) == (130, b"")
    assert is_there(connection, visitor)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_visitor_that_is_not_there_is_status_1(name: str, visitor: Visitor, database_url: str) -> None:
    visitor.external_id = "nobody at all"
    ran = run(name, visitor, database_url, *(["--yes"] if name == "erase-visitor" else []))
    assert (ran.status, ran.out) == (1, b"")
    assert ran.err.count("\n") == 1
    assert "with this external id" in ran.err
    assert "nobody at all" not in ran.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_database_that_is_away_is_status_75(name: str, visitor: Visitor, database_url: str) -> None:
    away = make_conninfo(database_url, host="127.0.0.1", port=1)
    ran = run(name, visitor, away, *(["--yes"] if name == "erase-visitor" else []))
    assert (ran.status, ran.out) == (75, b"")
    assert ran.err.startswith("cases-service: cannot reach the database: ")
    assert ran.err.count("\n") == 1


def test_an_erasure_that_waits_in_vain_is_status_75(
    visitor: Visitor, database_url: str, connection: psycopg.Connection
) -> None:
    with psycopg.connect(database_url) as holder:
        holder.execute("select 1 from contacts where id = %s for update", [visitor.contact_ids[0]])
        ran = run("erase-visitor", visitor, database_url, "--yes", "--wait", "0.2")
    assert (ran.status, ran.out) == (75, b"")
    assert "nothing was erased, try again" in ran.err
    assert is_there(connection, visitor)


def test_a_connection_that_dies_in_the_middle_leaves_everything(
    visitor: Visitor, database_url: str, connection: psycopg.Connection
) -> None:
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as threads:
        # Its last statement: everything else has been removed by then.
        holder.execute("insert into erasure_keys values (%s, %s)", [visitor.organization.id, b"k" * 32])
        erasing = threads.submit(run, "erase-visitor", visitor, database_url, "--yes")
        wait_until_blocks(holder)
        connection.execute(
            "select pg_terminate_backend(pid) from pg_locks where %s = any(pg_blocking_pids(pid))",
            [holder.info.backend_pid],
        )
        ran = erasing.result()
        holder.rollback()
    assert (ran.status, ran.out) == (75, b"")
    assert ran.err.count("\n") == 1
    assert is_there(connection, visitor)
    erased = json.loads(run("erase-visitor", visitor, database_url, "--yes").out)
    assert (erased["removed"]["contact"], erased["removed"]["case"]) == (2, 3)


def test_who_is_let_back_in_may_be_loaded(visitor: Visitor, database_url: str, connection: psycopg.Connection) -> None:
    (case_id, *_) = visitor.cases(1)
    for _ in range(2):
        about = {"organization_id": visitor.organization.id, "case_id": case_id, "created_at": LONG_AGO}
        visitor.organization.insert("activities", id=uuid4(), channel="email", updated_at=LONG_AGO, **about)
    exported = run("export-visitor", visitor, database_url).out
    erase_visitor(connection, organization_id=visitor.organization.id, external_id=visitor.external_id)

    def load() -> Ran:
        given = environment(DATABASE_URL=database_url)
        ran = subprocess.run([COMMAND, "load", "-"], input=exported, env=given, capture_output=True, check=False)
        return Ran(ran.returncode, ran.stdout, ran.stderr.decode())

    refused = load()
    assert (refused.status, refused.out) == (1, b"")
    assert refused.err.startswith("cases-service: standard input:1: external_id: erased: ")
    assert refused.err.count("\n") == 1
    allowed = run("allow-visitor", visitor, database_url)
    assert (allowed.status, allowed.out) == (0, b"")
    assert load().out == b"9 lines: 1 visitor, 2 contacts, 4 cases, 2 activities\n"
    assert run("export-visitor", visitor, database_url).out == exported


class Life:
    """What a person leaves in an installation, each text of which is found nowhere else."""

    def __init__(self, service: Service, organization: Organization) -> None:
        names = ("external_id", "first_name", "last_name", "email", "phone", "subject", "description", "case_number")
        self.texts = {name: f"x{uuid4().hex}" for name in (*names, "said", "answered", "noted", "too_long", "wrong")}
        self.service = service
        self.organization = organization
        self.system = organization.token_with("cases:write")
        self.portal = organization.token_with("visitors:read", "visitors:write")
        self.ids = {name: str(uuid4()) for name in ("visitor", "contact", "case", "message")}

    def lines(self) -> bytes:
        """Return the person's lines, one of which is wrong."""
        text, ids, at = self.texts, self.ids, dict.fromkeys(("created_at", "updated_at"), "2024-01-01T00:00:00Z")
        contact = {name: text[name] for name in ("first_name", "last_name", "email", "phone")}
        case = {name: text[name] for name in ("case_number", "subject", "description")} | {"status": "Open", **at}
        lines: list[dict[str, Any]] = [
            {"type": "visitor", "id": ids["visitor"], "external_id": text["external_id"]},
            {"type": "contact", "id": ids["contact"], "visitor_id": ids["visitor"], **contact, **at},
            {"type": "case", "id": ids["case"], "contact_id": ids["contact"], "priority": 3, **case},
            {"type": "case", "id": str(uuid4()), "priority": 3, **case, "subject": text["wrong"]},
            {"type": "case", "id": str(uuid4()), "priority": text["wrong"], **case},
        ]
        return b"\n".join(json.dumps(line).encode() for line in lines)

    def send(self, method: str, path: str, token: str, **options: Any) -> int:
        jwt = self.organization.jwt(self.texts["external_id"])
        headers = {"Authorization": f"Bearer {token}", "X-External-Identity": jwt, **options.pop("headers", {})}
        url = self.service.url(f"/api/v5/orgs/{self.organization.id}{path}")
        return requests.request(method, url, headers=headers, timeout=60, **options).status_code

    def import_lines(self) -> int:
        query = {"mode": "each"}
        headers = {"Content-Type": "application/x-ndjson"}
        return self.send("POST", "/import", self.system, data=self.lines(), headers=headers, params=query)

    def live(self) -> list[int]:
        """Come in, talk, and be looked for; by requests that are right, wrong and refused."""
        text, case = self.texts, f"/cases/{self.ids['case']}"
        seen = f"/external-visitors/-{case}"
        said = {"id": self.ids["message"], "text": text["said"]}
        return [
            self.import_lines(),
            self.send("GET", seen, self.portal),
            self.send("POST", f"{seen}/messages", self.portal, json=said),
            self.send("POST", f"{seen}/messages", self.portal, json={**said, "text": text["wrong"]}),
            self.send("POST", f"{seen}/messages", self.portal, json={"text": text["too_long"] * 1000}),
            self.send("POST", f"{case}/messages", self.system, json={"text": text["answered"], "is_private": False}),
            self.send("POST", f"{case}/messages", self.system, json={"text": text["noted"], "is_private": True}),
            self.send("PATCH", seen, self.portal, json={"is_closed": True}),
            self.send("PATCH", case, self.system, json={"subject": text["subject"], "priority": text["wrong"]}),
            self.send("POST", "/cases", self.system, json={"case_number": text["case_number"], "priority": 1}),
            self.send("GET", "/cases", self.system, params={"external_id": text["external_id"]}),
            self.send("GET", "/cases", self.system, params={"case_number": text["case_number"]}),
            self.send("GET", "/cases", self.system, params={"status": text["wrong"]}),
            self.send("GET", "/events", self.system),
        ]


def test_no_text_of_the_erased_is_in_a_log_line_a_metric_or_a_receipt(
    service: Service, organization: Organization, database_url: str
) -> None:
    life = Life(service, organization)
    assert life.live() == [200, 200, 201, 409, 400, 201, 201, 200, 400, 409, 200, 200, 400, 200]
    whom = ["--organization", str(organization.id), "--external-id", life.texts["external_id"]]
    given = environment(DATABASE_URL=database_url)
    erased = subprocess.run([COMMAND, "erase-visitor", *whom, "--yes"], env=given, capture_output=True, check=False)
    assert (erased.returncode, json.loads(erased.stdout)["removed"]["message"]) == (0, 3)
    # What comes late is refused, and the JWT opens nothing.
    assert life.import_lines() == 200
    assert life.send("GET", f"/external-visitors/-/cases/{life.ids['case']}", life.portal) == 404
    metrics = service.curl("/metrics")
    assert metrics.status == 200
    told = {
        "log": service.log.encode() + service.out.encode(),
        "metrics": metrics.body,
        "receipt": erased.stdout + erased.stderr,
    }
    assert str(organization.id).encode() in told["log"]
    for where, what in told.items():
        assert [name for name, text in life.texts.items() if text.encode() in what] == [], where

"""The commands about a person's data as an operator runs them: what they print, ask, and end with."""

import hashlib
import json
import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.personal_data.erasure import erase_visitor
from tests.factories import LONG_AGO, Organization, Visitor
from tests.process.running import COMMAND, environment
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

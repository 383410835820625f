"""What a role, a database, a URL or the environment sets for its sessions changes nothing here."""

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cases_service.application import create_app
from cases_service.cli import main as command_line
from cases_service.settings import read_settings
from tests.factories import SECRET_KEY, cases_path

VISITOR = "Łódź-😀"
SLOW_SECONDS = 0.6
SHORT = "200ms"
ROLE_SETTINGS = {
    "client_encoding": ["SQL_ASCII", "LATIN1"],
    "datestyle": ["German", "SQL, DMY"],
    "intervalstyle": ["sql_standard", "iso_8601"],
    "timezone": ["Asia/Tokyo"],
    "extra_float_digits": ["-15"],
    "bytea_output": ["escape"],
    "standard_conforming_strings": ["off"],
    "array_nulls": ["off"],
    "transform_null_equals": ["on"],
    "row_security": ["off"],
    "quote_all_identifiers": ["on"],
    "xmlbinary": ["hex"],
    "idle_in_transaction_session_timeout": [SHORT],
    "idle_session_timeout": [SHORT],
    "transaction_timeout": [SHORT],
    "statement_timeout": ["1ms"],
    "lock_timeout": ["1ms"],
    "restrict_nonsystem_relation_kind": ["view"],
    "default_transaction_read_only": ["on"],
    "default_transaction_isolation": ["serializable"],
    "default_transaction_deferrable": ["on"],
    "search_path": ['pg_temp, "$user", public', "pg_catalog, public"],
    "client_min_messages": ["error"],
}


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


class Place(NamedTuple):
    """A database of its own, whose owner serves and administers."""

    server: psycopg.Connection
    role: str
    url: str


@pytest.fixture(scope="module")
def place(server_url: str) -> Iterator[Place]:
    name = f"session_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create role {name} login password 'secret'".encode())
        server.execute(f"create database {name} owner {name} template template0 encoding 'UTF8'".encode())
        try:
            yield Place(server, name, make_conninfo(server_url, dbname=name, user=name, password="secret"))
        finally:
            server.execute(f"drop database {name} with (force)".encode())
            server.execute(f"drop role {name}".encode())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> Run:
    """Return a function that runs a command in this process on the place."""
    for name in [name for name in os.environ if name.startswith("CASES_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", place.url)
    monkeypatch.setenv("CASES_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("CASES_BIND", "127.0.0.1:1")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, given: io.RawIOBase | None = None) -> Ran:
        capsys.readouterr()
        with io.TextIOWrapper(io.BufferedReader(given or io.FileIO(os.devnull))) as stdin, monkeypatch.context() as now:
            now.setattr(sys, "stdin", stdin)
            status = command_line.run([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


def set_for_role(place: Place, name: str, value: str) -> None:
    listed = name == "search_path"
    shown = sql.SQL(value) if listed else sql.Literal(value)
    place.server.execute(sql.SQL("alter role {} set {} = {}").format(sql.Identifier(place.role), sql.SQL(name), shown))


@pytest.fixture
def set_role(place: Place) -> Iterator[Callable[[str, str], None]]:
    """Return a function that sets something for the role, until the test ends."""

    def set_role(name: str, value: str) -> None:
        known = place.server.execute("select 1 from pg_settings where lower(name) = %s", [name]).fetchone()
        if known is None:
            pytest.skip("this PostgreSQL has no such setting")
        set_for_role(place, name, value)

    yield set_role
    place.server.execute(f"alter role {place.role} reset all".encode())


def slowly(lines: list[dict[str, object]]) -> io.FileIO:
    """Return a pipe whose second half comes later than the time-outs of these tests."""
    reader, writer = os.pipe()
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writer, "wb", buffering=0) as pipe:
            pipe.write(text[: len(text) // 2])
            time.sleep(SLOW_SECONDS)
            pipe.write(text[len(text) // 2 :])

    threading.Thread(target=write).start()
    return io.FileIO(reader)


def export(organization: str, user: str) -> list[dict[str, object]]:
    ids = {name: str(uuid4()) for name in ("visitor", "contact", "case")}
    own = {"organization_id": organization}
    times = {"created_at": "2015-08-31T16:32:17.879123Z", "updated_at": "2015-08-31T16:32:17.879123Z"}
    return [
        {"type": "organization", "id": organization, "name": "Acme", "subscription_status": "active"},
        {"type": "user", "id": user, **own, "first_name": "Ł"},
        {"type": "visitor", "id": ids["visitor"], **own, "external_id": VISITOR},
        {"type": "contact", "id": ids["contact"], **own, "visitor_id": ids["visitor"]},
        {
            "type": "case", "id": ids["case"], **own, "contact_id": ids["contact"], "case_number": "1",
            "subject": "😀 \\ '", "status": "Open", "priority": 3, **times,
        },
    ]  # fmt: skip


def use_every_command_and_the_service(run: Run) -> None:
    """Do what an operator and a visitor do, and see that each of it works."""
    organization, user = str(uuid4()), str(uuid4())
    of = ("--organization", organization)

    def do(*arguments: object, given: io.RawIOBase | None = None) -> Ran:
        ran = run(*arguments, given=given)
        assert (ran.status, ran.err if arguments[0] != "create-token" else "") == (0, ""), arguments
        return ran

    assert do("init-db").out.startswith("schema version")
    assert "1 case" in do("load", "-", given=slowly(export(organization, user))).out
    assert organization in [found["id"] for found in json.loads(do("list-organizations", "--json").out)]
    assert user in do("list-users", *of).out
    created = do("create-token", *of, "--user", user, "--description", "Ł", "--expires-at", "2031-01-31T12:00:00Z")
    (token,) = json.loads(do("list-tokens", *of, "--json").out)
    assert (token["description"], token["expires_at"]) == ("Ł", "2031-01-31T12:00:00.000Z")
    kid = json.loads(do("create-key", *of).out)["kid"]
    assert kid in do("list-keys", *of).out
    jwt = do("sign", *of, "--external-id", VISITOR).out.strip()
    assert "200" in do("check-token", *of, jwt).out
    do("rotate-secrets")
    with closing(create_app(read_settings())) as app:
        headers = {"Authorization": f"Token {created.out.strip()}"}
        for _ in range(2):
            answer = app.test_client().get(cases_path(organization, jwt), headers=headers)
            assert answer.status_code == 200, answer.text
            (case,) = answer.get_json()["results"]
            assert (case["subject"], case["created_at"]) == ("😀 \\ '", "2015-08-31T16:32:17.879Z")
            time.sleep(0.3)
    findings = {found["check"]: found for found in json.loads(do("doctor", "--json").out)}
    assert {findings[check]["status"] for check in ("session", "session of commands", "schema", "rights")} == {"ok"}
    do("retire-key", *of, kid)
    do("revoke-token", *of, token["id"])
    do("prune-events", "--older-than", "1")
    visitor = (*of, "--external-id", VISITOR)
    assert '"subject":"😀' in do("export-visitor", *visitor).out
    assert json.loads(do("erase-visitor", *visitor, "--yes").out)["removed"]["case"] == 1
    assert run("allow-visitor", *visitor).status == 0


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ROLE_SETTINGS.items() for value in values]
)
def test_no_setting_of_the_role_changes_what_is_done(
    run: Run, set_role: Callable[[str, str], None], name: str, value: str
) -> None:
    set_role(name, value)
    use_every_command_and_the_service(run)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
@pytest.mark.parametrize("where", ["PGCLIENTENCODING", "parameter", "options", "PGOPTIONS"])
def test_no_encoding_of_the_url_or_the_environment_changes_what_is_done(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch, where: str, encoding: str
) -> None:
    option = f"-c client_encoding={encoding}"
    if where == "PGCLIENTENCODING":
        monkeypatch.setenv(where, encoding)
    elif where == "PGOPTIONS":
        monkeypatch.setenv(where, option)
    else:
        change = {"client_encoding": encoding} if where == "parameter" else {"options": option}
        monkeypatch.setenv("DATABASE_URL", make_conninfo(place.url, **change))
    use_every_command_and_the_service(run)


def test_a_database_that_is_read_only_by_default_is_left_alone(run: Run, place: Place) -> None:
    assert run("init-db").status == 0
    place.server.execute(f"alter database {place.role} set default_transaction_read_only = on".encode())
    try:
        assert "read-only" in run("load", "-", given=slowly(export(str(uuid4()), str(uuid4())))).err
    finally:
        place.server.execute(f"alter database {place.role} reset all".encode())

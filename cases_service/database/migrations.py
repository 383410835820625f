"""Creates the schema in an empty database, or upgrades an older one by the numbered files of migrations/, in order.

`schema.sql` is always the newest schema; migration 1 is the first. A migration does not change what the previous
release of the service reads, so that both can run side by side during an upgrade.

A file is one transaction, or several steps, each begun by a line `-- step: KIND`:

    transaction   statements in one transaction, which locks its tables for a moment
    tables        the same, but they make new tables, views and functions and nothing else. Where the others are Citus',
                  which cannot refer to them from a table of one server, these become so, too (deploy/citus.sql)
    outside       statements outside of any transaction, one by one: `create index concurrently` with a `drop index
                  concurrently if exists` before it, `validate constraint`. After a failure all of them run again
    planner       like outside, but what the planner is told of columns, which Citus passes on to no node: init-db does,
                  each time
    repeat        one statement that changes a batch of rows, repeated in transactions of its own until it changes none
    refuse WORDS  a query: if it returns rows, the upgrade stops. It returns their number and a description of each

Each finished step is recorded, and the next init-db continues after it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, TypeVar

import psycopg
from psycopg.rows import tuple_row

from cases_service.database.command_connection import see_every_organization
from cases_service.database.statements import source, statements
from cases_service.terminal import printable

T = TypeVar("T")

_SCHEMA: Final = statements("schema")
_STEP: Final = re.compile(r"^-- step: (transaction|tables|outside|planner|repeat|refuse)(?: (.+))?$", re.MULTILINE)
_STATEMENT_END: Final = re.compile(r";[ \t]*$", re.MULTILINE)
_DOLLAR_QUOTE: Final = re.compile(r"\$\w*\$")
_LOCK_SECONDS: Final = 0.5
_NAMED: Final = 3
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 2.0
DEFAULT_WAIT: Final = 60.0


class SchemaError(RuntimeError):
    """The database cannot take the schema. The message says why."""


class SchemaBusyError(SchemaError):
    """Another session held a table for too long. Try again: finished steps are kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a migration. For a refusal, `words` describe its rows."""

    kind: str
    text: str
    words: str = ""

    @property
    def statements(self) -> list[str]:
        """The statements, to run one by one: Citus hands the whole text to its nodes that it is given at once."""
        found = [""]
        for part in _STATEMENT_END.split(self.text):
            found[-1] += part
            if len(_DOLLAR_QUOTE.findall(found[-1])) % 2:
                found[-1] += ";"
            else:
                found.append("")
        return [statement for statement in map(str.strip, found) if statement]


def _files() -> dict[int, Path]:
    return {int(file.name[:4]): file for file in sorted(source("migrations").glob("[0-9]*.sql"))}


def steps_of(file: Path) -> list[Step]:
    """Return the steps of a migration, in order."""
    _, *parts = _STEP.split(text := file.read_text())
    steps = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [Step(kind, body, words or "") for kind, words, body in steps] or [Step("transaction", text)]


SCHEMA_VERSION: Final = max(_files())
"""The schema version that this release needs. It also runs on a newer one."""


def _be_silent(_line: str) -> None:
    pass


def init_db(
    connection: psycopg.Connection[Any],
    *,
    service_role: str | None = None,
    writer_role: str | None = None,
    wait: float = DEFAULT_WAIT,
    say: Callable[[str], None] = _be_silent,
) -> tuple[int, int]:
    """Bring a database to the newest schema, step by step, and return the versions before and after.

    Safe to repeat, and to run from several processes at once: one works, the others wait and find it done. Each run
    grants exactly the rights that this release needs: to the role that serves, and to the connection's role if it does
    not own the schema. It blocks readers only for moments.

    Args:
        connection: To PostgreSQL itself, in autocommit mode; its role owns the schema or may create it, or is a member
            of one that does.
        service_role: The role that serves, if it is another one.
        writer_role: The role that writes cases for the service, if it is another one.
        wait: How many seconds to wait for a session that holds a table, each time.
        say: Called with one line about each step and each wait.

    Raises:
        SchemaError: The database does not store UTF-8, its schema is newer than this release, there is no such role,
            rows prevent the upgrade, or a node of Citus refuses it.
        SchemaBusyError: A session held a table for too long. The next call continues from there.

    """
    if connection.info.parameter_status("server_encoding") != "UTF8":
        raise SchemaError("the database must store text as UTF-8: create it with encoding UTF8")
    work = _Work(connection, wait=wait, say=say)
    with work.alone():
        before = version_of(connection)
        if before > SCHEMA_VERSION:
            raise SchemaError(f"the schema has version {before} and this release knows {SCHEMA_VERSION}: upgrade it")
        roles = _Roles(service=service_role, writer=writer_role)
        if before == 0:
            work.in_transaction(lambda: _create(connection, roles))
        else:
            work.upgrade(before)
            work.in_transaction(lambda: _grant(connection, roles))
        work.describe_shards()
    return before, SCHEMA_VERSION


def _check_role(connection: psycopg.Connection[Any], role: str, variable: str) -> None:
    if connection.execute(_SCHEMA["has_role"], {"role": role}).fetchone() == (False,):
        raise SchemaError(f"there is no role {role}, which {variable} names: see docs/security.md")


def version_of(connection: psycopg.Connection[Any]) -> int:
    """Return the version of a database's schema, 0 if it has none."""
    row = connection.execute(_SCHEMA["has_schema"]).fetchone()
    if row is None or not row[0]:
        return 0
    row = connection.execute(_SCHEMA["get_schema_version"]).fetchone()
    return 0 if row is None else int(row[0])


def become_owner(connection: psycopg.Connection[Any]) -> None:
    """Switch to the schema's owner for the rest of the transaction, if this role is a member of it."""
    _run(connection, "find_owner", is_local=True)


def lock_timeout(seconds: float) -> str:
    """Return the setting's value, in milliseconds, but never 0, which means no limit."""
    return str(max(1, round(seconds * 1000)))


def list_holders(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the first few sessions that use the service's tables, without their queries."""
    cursor = connection.cursor(row_factory=tuple_row)
    return [printable(what) for _, what in cursor.execute(_SCHEMA["list_holders"]).fetchmany(_NAMED)]


class _Retries:
    """Retries while other sessions hold a lock, and reports who they are."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._end = monotonic() + seconds
        self._pause = _FIRST_PAUSE
        self._say = say
        self._said = ""

    def pause(self, holders: Iterable[str]) -> None:
        """Wait a little before the next try.

        Raises:
            SchemaBusyError: The time is up.

        """
        whom = ", ".join(list(holders)[:_NAMED]) or "another session"
        if monotonic() + self._pause > self._end:
            raise SchemaBusyError(f"gave up waiting for {whom}: end that, or try again later; what was done is kept")
        if whom != self._said:
            self._say(f"waiting for {whom}")
            self._said = whom
        sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


class _Work:
    """The steps of init_db on its connection."""

    def __init__(self, connection: psycopg.Connection[Any], *, wait: float, say: Callable[[str], None]) -> None:
        self._connection = connection
        self._wait = wait
        self._say = say

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs of init-db out meanwhile."""
        retries = _Retries(self._wait, self._say)
        while not self._first("lock_schema"):
            retries.pause(self._named("list_others_at_work").values())
        try:
            yield
        finally:
            if not self._connection.closed:
                self._connection.execute(_SCHEMA["unlock_schema"])

    def upgrade(self, version: int) -> None:
        """Run the outstanding steps, and record each."""
        if not self._first("has_progress"):
            self.in_transaction(lambda: self._connection.execute(_SCHEMA["add_progress"]))
        done = int(self._first("get_steps_done"))
        for number, file in _files().items():
            if number > version:
                self._migrate(number, steps_of(file), done)
                done = 0

    def _migrate(self, version: int, steps: list[Step], done: int) -> None:
        for number, step in enumerate(steps[done:], start=done + 1):
            self._say(f"schema {version}, step {number} of {len(steps)}")
            is_last = number == len(steps)
            self._take(step, version=version if is_last else version - 1, steps_done=0 if is_last else number)

    def _take(self, step: Step, **progress: int) -> None:
        match step.kind:
            case "refuse":
                self._refuse(step)
            case "outside" | "planner":
                self._run_outside(step)
            case "repeat":
                while self.in_transaction(lambda: self._execute(step).rowcount):
                    pass

        def finish() -> None:
            if step.kind == "tables":
                self._make_tables(step)
            elif step.kind == "transaction":
                for statement in step.statements:
                    self._connection.execute(statement.encode(), prepare=False)
            self._connection.execute(_SCHEMA["record_progress"], progress)

        self.in_transaction(finish)

    def _make_tables(self, step: Step) -> None:
        """Make tables, on this server alone; then let Citus distribute them, if it has the others."""
        if not self._first("is_distributed"):
            self._execute(step)
            return
        for name in ("keep_settings_here", "stop_propagation"):
            self._connection.execute(_SCHEMA[name])
        self._execute(step)
        for name in ("resume_propagation", "distribute_tables"):
            self._connection.execute(_SCHEMA[name])

    def _execute(self, step: Step) -> psycopg.Cursor[Any]:
        return self._connection.execute(step.text.encode(), prepare=False)

    def _refuse(self, step: Step) -> None:
        found = self.in_transaction(lambda: self._execute(step).fetchmany(_NAMED))
        if found:
            number, more = found[0][0], "; …" if found[0][0] > len(found) else ""
            raise SchemaError(f"{number:,} {step.words}: {'; '.join(what for _, what in found)}{more}")

    def _run_outside(self, step: Step) -> None:
        """Run statements that block nobody, but may wait for older transactions."""
        try:
            self._set_lock_timeout(self._wait, is_local=False)
            _run(self._connection, "find_owner", is_local=False)
            if step.kind == "planner":
                self._connection.execute(_SCHEMA["stop_propagation"])
            for statement in step.statements:
                self._connection.execute(statement.encode(), prepare=False)
        except psycopg.errors.LockNotAvailable:
            _Retries(0, self._say).pause(self._named("list_holders").values())
        finally:
            if not self._connection.closed:
                if step.kind == "planner":
                    self._connection.execute(_SCHEMA["resume_propagation"])
                self._connection.execute(_SCHEMA["reset_role"])
                self._connection.execute(_SCHEMA["reset_lock_timeout"])

    def describe_shards(self) -> None:
        """Tell the planner on Citus' nodes what this server's is told, of shards that are new or have moved.

        Raises:
            SchemaError: A node refuses it. The next call tries again.

        """
        if self._first("is_distributed"):
            self.in_transaction(lambda: _describe_shards(self._connection))

    def in_transaction(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run as the owner in a transaction that waits only a moment for each lock.

        A waiting lock request blocks all later ones, even of readers. So it gives up and retries.
        """
        retries = _Retries(self._wait, self._say)
        while True:
            before = self._named("list_holders")
            try:
                with self._connection.transaction():
                    self._set_lock_timeout(_LOCK_SECONDS, is_local=True)
                    become_owner(self._connection)
                    self._connection.execute(_SCHEMA["work_in_sequence"], prepare=False)
                    # What a migration changes, it changes for all.
                    see_every_organization(self._connection)
                    return work()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                after = self._named("list_holders")
                # Only sessions that were there all the time; a read that came later did not hold the lock.
                retries.pause([what for who, what in after.items() if who in before])

    def _set_lock_timeout(self, seconds: float, *, is_local: bool) -> None:
        parameters = {"milliseconds": lock_timeout(seconds), "is_local": is_local}
        self._connection.execute(_SCHEMA["set_lock_timeout"], parameters)

    def _named(self, statement: str) -> dict[str, str]:
        """Return sessions and their descriptions, printable, since an application chooses its own name."""
        rows = self._connection.execute(_SCHEMA[statement]).fetchall()
        return {who: printable(what) for who, what in rows}

    def _first(self, statement: str) -> Any:
        row = self._connection.execute(_SCHEMA[statement]).fetchone()
        return None if row is None else row[0]


@dataclass(frozen=True, slots=True)
class _Roles:
    """The roles to grant rights to, if they differ from the connection's."""

    service: str | None
    writer: str | None


def _describe_shards(connection: psycopg.Connection[Any]) -> None:
    cursor = connection.cursor(row_factory=tuple_row)
    failed = cursor.execute(_SCHEMA["describe_shards"], prepare=False).fetchmany(_NAMED)
    if failed:
        raise SchemaError(f"could not tell the planner of shards: {'; '.join(printable(what) for (what,) in failed)}")


def _create(connection: psycopg.Connection[Any], roles: _Roles) -> None:
    connection.execute(source("schema.sql").read_bytes(), prepare=False)
    connection.execute(_SCHEMA["set_schema_version"], {"version": SCHEMA_VERSION})
    _grant(connection, roles)


def _grant(connection: psycopg.Connection[Any], roles: _Roles) -> None:
    _run(connection, "list_administration_grants")
    if roles.service is not None:
        _check_role(connection, roles.service, "DATABASE_URL")
        _run(connection, "list_service_grants", role=roles.service)
    if roles.writer is not None:
        _check_role(connection, roles.writer, "CASES_WRITE_DATABASE_URL")
        _run(connection, "list_writer_grants", role=roles.writer)


def _run(connection: psycopg.Connection[Any], name: str, **parameters: Any) -> None:
    """Run the statements that a query generates; the server quotes each name in them."""
    cursor = connection.cursor(row_factory=tuple_row)
    for (statement,) in cursor.execute(_SCHEMA[name], parameters or None).fetchall():
        connection.execute(statement, prepare=False)

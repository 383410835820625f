"""Creates the schema in an empty database and upgrades an older one, one numbered file of migrations/ at a time.

`schema.sql` is always the newest schema; migration 1 is the first. A migration leaves what the previous release of
the service reads as it was, so that the two can run side by side during an upgrade.

A file is one transaction, or several steps, each begun by a line `-- step: KIND`:

    transaction   statements in one transaction, which locks its tables for a moment
    outside       statements outside of any transaction, one after another: `create index concurrently` with a `drop
                  index concurrently if exists` before it, `validate constraint`. All are run again where one failed
    repeat        one statement that changes a batch of rows, run in transactions of its own until it changes none
    refuse WORDS  a query: where it has rows, the upgrade stops. It gives their number and what each is

Each step is recorded when it is done, and the next init-db goes on after it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, TypeVar

import psycopg

from cases_service.database.statements import source, statements
from cases_service.terminal import printable

T = TypeVar("T")

_SCHEMA: Final = statements("schema")
_STEP: Final = re.compile(r"^-- step: (transaction|outside|repeat|refuse)(?: (.+))?$", re.MULTILINE)
_STATEMENT_END: Final = re.compile(r";[ \t]*$", re.MULTILINE)
_LOCK_SECONDS: Final = 0.5
_NAMED: Final = 3
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 2.0
DEFAULT_WAIT: Final = 60.0


class SchemaError(RuntimeError):
    """The database cannot take the schema. The message says why."""


class SchemaBusyError(SchemaError):
    """Somebody held what an upgrade needs for longer than it was to wait. It may pass: what was done is kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a migration. `words` say of a refusal what its rows are."""

    kind: str
    text: str
    words: str = ""

    @property
    def statements(self) -> list[str]:
        """What is run one by one."""
        return [part for part in map(str.strip, _STATEMENT_END.split(self.text)) if part]


def _files() -> dict[int, Path]:
    return {int(file.name[:4]): file for file in sorted(source("migrations").glob("[0-9]*.sql"))}


def steps_of(file: Path) -> list[Step]:
    """Return the steps of a migration, in order."""
    _, *parts = _STEP.split(text := file.read_text())
    steps = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return [Step(kind, body, words or "") for kind, words, body in steps] or [Step("transaction", text)]


SCHEMA_VERSION: Final = max(_files())
"""The schema that this release needs. It also runs on a newer one."""


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

    Safe to repeat, and to run from several processes at once: one works, the others wait and find it done. Each time
    the roles get the rights that this release needs, and no more: who serves, and who runs this where that is not the
    owner. Nobody who reads waits for it for longer than a moment.

    Args:
        connection: To PostgreSQL itself, in autocommit mode; its role owns the schema or may create it, or is a member
            of one that does.
        service_role: Who serves, where that is another one.
        writer_role: Who writes cases for the service, where that is another one.
        wait: For how many seconds to wait for whoever holds a table, each time.
        say: Told in a line what is being done, and what is waited for.

    Raises:
        SchemaError: The database does not store UTF-8, its schema is newer than this release, there is no such role, or
            a row is in the way.
        SchemaBusyError: Somebody held a table for too long. The next call goes on from there.

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
    return before, SCHEMA_VERSION


def _check_role(connection: psycopg.Connection[Any], role: str, variable: str) -> None:
    if connection.execute(_SCHEMA["has_role"], {"role": role}).fetchone() == (False,):
        raise SchemaError(f"there is no role {role}, which {variable} names: see docs/security.md")


def version_of(connection: psycopg.Connection[Any]) -> int:
    """Return the version of a database's schema, 0 where it has none."""
    row = connection.execute(_SCHEMA["has_schema"]).fetchone()
    if row is None or not row[0]:
        return 0
    row = connection.execute(_SCHEMA["get_schema_version"]).fetchone()
    return 0 if row is None else int(row[0])


def become_owner(connection: psycopg.Connection[Any]) -> None:
    """Make the rest of a transaction the work of the schema's owner, where this role is a member of that one."""
    _run(connection, "find_owner", is_local=True)


def lock_timeout(seconds: float) -> str:
    """Return a time as the setting takes it, whose 0 means no end."""
    return str(max(1, round(seconds * 1000)))


def list_holders(connection: psycopg.Connection[Any]) -> list[str]:
    """Return which sessions use the service's tables, the first few, without what they ask."""
    return [printable(what) for _, what in connection.execute(_SCHEMA["list_holders"]).fetchmany(_NAMED)]


class _Patience:
    """How long to try again for what others hold, and what is said of them."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._end = monotonic() + seconds
        self._pause = _FIRST_PAUSE
        self._say = say
        self._said = ""

    def pause(self, holders: Iterable[str]) -> None:
        """Wait a little before another try.

        Raises:
            SchemaBusyError: It has been long enough.

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
    """What init_db does on its connection."""

    def __init__(self, connection: psycopg.Connection[Any], *, wait: float, say: Callable[[str], None]) -> None:
        self._connection = connection
        self._wait = wait
        self._say = say

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other init-db work meanwhile."""
        patience = _Patience(self._wait, self._say)
        while not self._first("lock_schema"):
            patience.pause(self._named("list_others_at_work").values())
        try:
            yield
        finally:
            if not self._connection.closed:
                self._connection.execute(_SCHEMA["unlock_schema"])

    def upgrade(self, version: int) -> None:
        """Take the steps that are outstanding, and record each."""
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
            case "outside":
                self._run_outside(step)
            case "repeat":
                while self.in_transaction(lambda: self._execute(step).rowcount):
                    pass

        def finish() -> None:
            if step.kind == "transaction":
                self._execute(step)
            self._connection.execute(_SCHEMA["record_progress"], progress)

        self.in_transaction(finish)

    def _execute(self, step: Step) -> psycopg.Cursor[Any]:
        return self._connection.execute(step.text.encode(), prepare=False)

    def _refuse(self, step: Step) -> None:
        found = self.in_transaction(lambda: self._execute(step).fetchmany(_NAMED))
        if found:
            number, more = found[0][0], "; …" if found[0][0] > len(found) else ""
            raise SchemaError(f"{number:,} {step.words}: {'; '.join(what for _, what in found)}{more}")

    def _run_outside(self, step: Step) -> None:
        """Run statements that lock nobody out, and may wait for what began before them."""
        try:
            self._set_lock_timeout(self._wait, is_local=False)
            _run(self._connection, "find_owner", is_local=False)
            for statement in step.statements:
                self._connection.execute(statement.encode(), prepare=False)
        except psycopg.errors.LockNotAvailable:
            _Patience(0, self._say).pause(self._named("list_holders").values())
        finally:
            if not self._connection.closed:
                self._connection.execute(_SCHEMA["reset_role"])
                self._connection.execute(_SCHEMA["reset_lock_timeout"])

    def in_transaction(self, work: Callable[[], T]) -> T:
        """Return what `work` does as the owner, in a transaction that waits for each lock for a moment only.

        Who waits for a lock keeps all who come later from the table, readers too. So it lets go, and tries again.
        """
        patience = _Patience(self._wait, self._say)
        while True:
            before = self._named("list_holders")
            try:
                with self._connection.transaction():
                    self._set_lock_timeout(_LOCK_SECONDS, is_local=True)
                    become_owner(self._connection)
                    self._connection.execute(_SCHEMA["see_every_organization"])
                    return work()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                after = self._named("list_holders")
                # Who was there all the time; a read that came meanwhile held up nobody.
                patience.pause([what for who, what in after.items() if who in before])

    def _set_lock_timeout(self, seconds: float, *, is_local: bool) -> None:
        parameters = {"milliseconds": lock_timeout(seconds), "is_local": is_local}
        self._connection.execute(_SCHEMA["set_lock_timeout"], parameters)

    def _named(self, statement: str) -> dict[str, str]:
        """Return sessions, each with the words that name it: an application says itself what it is called."""
        rows = self._connection.execute(_SCHEMA[statement]).fetchall()
        return {who: printable(what) for who, what in rows}

    def _first(self, statement: str) -> Any:
        row = self._connection.execute(_SCHEMA[statement]).fetchone()
        return None if row is None else row[0]


@dataclass(frozen=True, slots=True)
class _Roles:
    """The roles that get rights, where they are other ones than that of the connection."""

    service: str | None
    writer: str | None


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
    """Run the statements that a statement puts together, each name quoted by the server."""
    for (statement,) in connection.execute(_SCHEMA[name], parameters or None).fetchall():
        connection.execute(statement, prepare=False)

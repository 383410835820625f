"""Visitors of two organizations with the same ids, and clients who change their cases and write down what they did."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg

from cases_service.credentials.secret_encryption import SecretBox
from tests.factories import LONG_AGO, SECRET_KEY, Organization, Visitor
from tests.process.journal import Journal, Key, State, Version, number_of, written
from tests.process.running import wait_for

VISITORS = 3
CONTACTS_OF_EACH = 3
CASES_OF_EACH = 40
STEADY = 4
"""One case in so many stays where it is: only what it says changes."""
PAUSE_SECONDS = 0.005
MOMENTS = (0, 1, 2, 3, 1000, 1001, 2_000_000)
"""So few that most cases share theirs with others, and some but for less than the API shows."""

_STATEMENTS = {
    "insert": """
        insert into cases (organization_id, id, case_number, contact_id, subject, status, priority,
            latest_messaging_channel, closed_at, unread_message_count, created_at, updated_at)
        values (%(organization_id)s, %(id)s, %(case_number)s, %(contact_id)s, %(subject)s, %(status)s, %(priority)s,
            %(latest_messaging_channel)s, %(closed_at)s, %(unread_message_count)s, %(created_at)s, %(updated_at)s)""",
    "update": """
        update cases
        set contact_id = %(contact_id)s, subject = %(subject)s, status = %(status)s, priority = %(priority)s,
            latest_messaging_channel = %(latest_messaging_channel)s, closed_at = %(closed_at)s,
            unread_message_count = %(unread_message_count)s, created_at = %(created_at)s, updated_at = %(updated_at)s
        where organization_id = %(organization_id)s and id = %(id)s""",
    "delete": "delete from cases where organization_id = %(organization_id)s and id = %(id)s",
}


@dataclass
class World:
    """Two organizations that look the same from outside, and the journal of their cases."""

    visitors: list[Visitor]
    journal: Journal

    @classmethod
    def make(cls, connection: psycopg.Connection) -> "World":
        """Make visitors and contacts; their cases are the writers' to make."""
        journal = Journal()
        ids = [[uuid4() for _ in range(CONTACTS_OF_EACH)] for _ in range(VISITORS)]
        names = [f"visitor-{number}" for number in range(VISITORS)]
        journal.visitors = {contact_id: name for name, of_one in zip(names, ids, strict=True) for contact_id in of_one}
        case_ids = [uuid4() for _ in range(VISITORS * CASES_OF_EACH)]
        visitors: list[Visitor] = []
        for _ in range(2):
            organization = Organization(connection, SecretBox([SECRET_KEY]))
            mine = {name: Visitor(organization, name, contacts=0) for name in names}
            journal.contacts[organization.id] = {
                contact_id: _contact(organization, contact_id, mine[name])
                for contact_id, name in journal.visitors.items()
            }
            journal.add(Key(organization.id, case_id) for case_id in case_ids)
            visitors += mine.values()
        return cls(visitors, journal)


def _contact(organization: Organization, contact_id: UUID, visitor: Visitor) -> dict[str, Any]:
    """Make a contact, and return it as the API shows it."""
    given = {"email": f"{uuid4()}@example.com", "created_at": LONG_AGO, "updated_at": LONG_AGO}
    organization.insert("contacts", organization_id=organization.id, id=contact_id, visitor_id=visitor.id, **given)
    nothing = dict.fromkeys(("first_name", "last_name", "full_name", "phone"))
    ids = {"id": str(contact_id), "organization_id": str(organization.id)}
    return ids | nothing | {n: written(v) if isinstance(v, datetime) else v for n, v in given.items()}


class Writer:
    """Changes cases that are its own, one to three in a transaction, and one transaction in ten in vain."""

    def __init__(self, connect: Callable[[], psycopg.Connection], journal: Journal, keys: list[Key]) -> None:
        self.in_doubt = 0
        self._connect = connect
        self._journal = journal
        self._keys = keys
        self._random = random.Random()  # noqa: S311
        self._serial = 0
        self._contacts = sorted(journal.visitors)

    def populate(self) -> None:
        """Make most of the cases."""
        with self._connect() as connection:
            some = [key for number, key in enumerate(self._keys) if number % STEADY == 0 or self._random.random() < 0.7]
            self._write(connection, {key: self._new() for key in some})

    def write(self, until: threading.Event) -> None:
        """Change cases until it is time to stop, on another connection where one is lost."""
        connection = self._connect()
        while not until.wait(self._random.uniform(0, 2 * PAUSE_SECONDS)):
            chosen = self._random.sample(range(len(self._keys)), self._random.randint(1, 3))
            changes = {self._keys[i]: self._change(self._keys[i], steady=i % STEADY == 0) for i in chosen}
            try:
                if self._random.random() < 0.1:
                    self._send(connection, changes)
                    connection.rollback()
                else:
                    self._write(connection, changes)
            except psycopg.OperationalError:
                connection.close()
                connection = self._connect()
        connection.close()

    def _write(self, connection: psycopg.Connection, changes: Mapping[Key, State | None]) -> None:
        self._send(connection, changes)
        sent = time.monotonic()
        try:
            connection.commit()
        except psycopg.OperationalError:
            self.in_doubt += 1
            if self._was_committed(changes):
                self._note(changes, sent)
            raise
        self._note(changes, sent)

    def _note(self, changes: Mapping[Key, State | None], sent: float) -> None:
        done = time.monotonic()
        for key, state in changes.items():
            self._journal.histories[key].versions.append(Version(state, sent, done))

    def _send(self, connection: psycopg.Connection, changes: Mapping[Key, State | None]) -> None:
        for key, state in changes.items():
            ids = {"organization_id": key.organization_id, "id": key.id, "case_number": number_of(key)}
            before = self._journal.histories[key].last
            kind = "delete" if state is None else "insert" if before is None else "update"
            result = connection.execute(_STATEMENTS[kind].encode(), ids | ({} if state is None else state.columns()))
            assert result.rowcount == 1, f"a commit was lost: {kind} finds no {key}"

    def _was_committed(self, changes: Mapping[Key, State | None]) -> bool:
        """Ask whether a transaction was committed whose connection was lost meanwhile: all of it or nothing."""
        with self._connect() as connection:
            serials = serials_of(connection, changes)
        after = {key: state and state.serial for key, state in changes.items()}
        before = {key: (last := self._journal.histories[key].last) and last.serial for key in changes}
        assert serials in (before, after), f"half of a transaction: {serials} between {before} and {after}"
        return serials == after

    def _new(self) -> State:
        self._serial += 1
        choose = self._random.choice
        channel = choose((None, "email", "whatsapp", "webchat"))
        status = choose(("Open", "In Progress", "Pending", "Closed"))
        contact_id = choose([None, *self._contacts])
        moments = choose(MOMENTS), choose(MOMENTS)
        return State(self._serial, contact_id, status, self._random.randint(1, 5), channel, *moments)

    def _change(self, key: Key, *, steady: bool) -> State | None:
        """Return what a case becomes."""
        old, new = self._journal.histories[key].last, self._new()
        if old is None:
            return new
        said = replace(new, contact_id=old.contact_id, created=old.created, updated=old.updated)
        if steady:
            return said
        linked = replace(old, serial=new.serial, contact_id=new.contact_id)
        moved = replace(old, serial=new.serial, updated=new.updated)
        return self._random.choice([None, new, linked, said, moved, replace(said, updated=new.updated)])


def serials_of(connection: psycopg.Connection, keys: Iterable[Key]) -> dict[Key, int | None]:
    """Return the serials of cases as they stand in the database, None for those that do not."""
    organizations = {key.organization_id for key in keys}
    rows = connection.execute(
        "select organization_id, id, unread_message_count from cases where organization_id = any(%s)",
        [list(organizations)],
    ).fetchall()
    found = {Key(*row[:2]): row[2] for row in rows}
    return {key: found.get(key) for key in keys}


def connector(url: str) -> Callable[[], psycopg.Connection]:
    """Return a function that connects as soon as a server lets it."""

    def attempt() -> psycopg.Connection | None:
        try:
            return psycopg.connect(url)
        except psycopg.OperationalError:
            return None

    return lambda: wait_for(attempt)


def share(world: World, connect: Callable[[], psycopg.Connection], number: int) -> list[Writer]:
    """Return so many clients who share the cases among them."""
    keys = list(world.journal.histories)
    return [Writer(connect, world.journal, keys[i::number]) for i in range(number)]

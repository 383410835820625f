"""A person's data: exported whole, erased whole, and kept out afterwards."""

import hashlib
import json
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.pipeline import preamble
from cases_service.database.statements import statements
from cases_service.embedded.command_database import CommandDatabase
from cases_service.embedded.server import _find_programs
from cases_service.loading.erased_visitors import hash_external_id
from cases_service.loading.load import load
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from cases_service.loading.records import RECORDS
from cases_service.loading.statements import TABLES
from cases_service.loading.turns import take_turns
from cases_service.personal_data import erasure
from cases_service.personal_data.erasure import ErasureBusyError, Receipt, allow_visitor, erase_visitor
from cases_service.personal_data.export import EXPORTS, PersonalDataError, export_visitor
from tests import citus
from tests.api.conversations import Sides
from tests.api.test_import import Feed
from tests.database.test_roles import Roles, make_roles, roles
from tests.factories import LONG_AGO, Organization, Visitor, assert_problem
from tests.loading.test_loading import Fields, content_of, file_of, wait_until_blocks
from tests.process.running import wait_for
from tests.torture import times
from tests.writing import contents

__all__ = ["make_roles", "roles"]

ERASED = "erased: the organization has erased this visitor, whom cases-service allow-visitor would let back in"
NO_PARENT = "there is no such row in this organization when all files are read"
WAITING_FOR_A_TURN = (
    "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    " and database = (select oid from pg_database where datname = current_database())"
)


class Person:
    """A visitor of an organization with two contacts, three cases and a conversation in each."""

    def __init__(self, client: FlaskClient, organization: Organization) -> None:
        self.client = client
        self.organization = organization
        self.visitor = organization.visitor(contacts=2)
        self.case_ids = self.visitor.cases(3)
        for case_id in self.case_ids:
            self.talk(case_id)

    @property
    def about(self) -> dict[str, Any]:
        return {"organization_id": self.organization.id, "external_id": self.visitor.external_id}

    def sides(self, case_id: UUID) -> Sides:
        return Sides(self.client, self.organization, self.visitor, case_id)

    def talk(self, case_id: UUID) -> None:
        """Let the visitor and a user talk, and users among themselves, in an activity of their own, too."""
        sides = self.sides(case_id)
        sides.note("Nobody has written yet", channel="email")
        sides.say("Hello")
        sides.answer("Good day")
        sides.note("Careful")
        sides.by_visitor("PUT", "/read", {})

    def export(self, connection: psycopg.Connection) -> bytes:
        return b"".join(export_visitor(connection, **self.about))

    def erase(self, connection: psycopg.Connection, **options: Any) -> Receipt:
        return erase_visitor(connection, **self.about, **options)

    def line(self, **fields: Any) -> Fields:
        """Return the visitor's line of the load format."""
        given = {"id": str(self.visitor.id), "organization_id": str(self.organization.id)}
        return {"type": "visitor", **given, "external_id": self.visitor.external_id, **fields}


@pytest.fixture
def person(client: FlaskClient, organization: Organization) -> Person:
    return Person(client, organization)


def types(lines: bytes) -> Counter[str]:
    return Counter(json.loads(line)["type"] for line in lines.splitlines())


def load_with(connection: psycopg.Connection, *lines: Fields, **options: Any) -> LoadSummary:
    return load(connection, [file_of(*lines)], box=SecretBox([]), options=LoadOptions(**options))


def wrong(summary: LoadSummary) -> list[tuple[int, str | None, str]]:
    return [(error.line, error.field, error.detail) for error in summary.errors]


class TestExport:
    def test_everything_about_a_visitor_but_notes(self, person: Person, connection: psycopg.Connection) -> None:
        exported = person.export(connection)
        assert types(exported) == {"visitor": 1, "contact": 2, "case": 3, "activity": 3, "message": 6, "event": 6}
        assert {line["organization_id"] for line in map(json.loads, exported.splitlines())} == {
            str(person.organization.id)
        }
        for note in (b"Nobody has written yet", b"Careful"):
            assert note not in exported

    def test_rows_come_with_all_their_microseconds(self, person: Person, connection: psycopg.Connection) -> None:
        contacts = [
            line for line in map(json.loads, person.export(connection).splitlines()) if line["type"] == "contact"
        ]
        assert {contact["created_at"] for contact in contacts} == {"2015-08-31T16:32:17.879123Z"}

    def test_the_same_data_are_the_same_bytes(self, person: Person, connection: psycopg.Connection) -> None:
        before = person.export(connection)
        # Where a row lies does not matter.
        connection.execute(
            "update messages set read_at = read_at where organization_id = %s and read_at is not null",
            [person.organization.id],
        )
        assert person.export(connection) == before

    def test_nothing_of_another_visitor_is_in_it(
        self, client: FlaskClient, person: Person, connection: psycopg.Connection
    ) -> None:
        before = person.export(connection)
        Person(client, person.organization)
        twin = Organization(person.organization.connection, person.organization.box)
        twin.visitor(person.visitor.external_id).cases(2)
        assert person.export(connection) == before

    def test_what_was_done_under_a_former_external_id_is_in_it(
        self, person: Person, connection: psycopg.Connection
    ) -> None:
        renamed = f"renamed-{uuid4()}"
        person.organization.update("visitors", "id", person.visitor.id, external_id=renamed)
        person.visitor.external_id = renamed
        assert types(person.export(connection))["event"] == 6

    def test_what_another_visitor_did_in_a_case_that_is_now_theirs_is_not_in_it(
        self, client: FlaskClient, person: Person, connection: psycopg.Connection
    ) -> None:
        former = Person(client, person.organization)
        moved = former.case_ids[0]
        person.organization.update("cases", "id", moved, contact_id=person.visitor.contact_ids[0])
        person.sides(moved).say("It is mine now")
        exported = person.export(connection)
        assert former.visitor.external_id.encode() not in exported
        assert (types(exported)["case"], types(exported)["event"]) == (4, 7)
        assert types(former.export(connection))["event"] == 6
        # It can be loaded whatever becomes of the other visitor.
        former.erase(connection)
        assert load_with(connection, *map(json.loads, exported.splitlines())).error_count == 0

    def test_a_visitor_that_is_not_there_is_an_error(
        self, organization: Organization, connection: psycopg.Connection
    ) -> None:
        lines = export_visitor(connection, organization_id=organization.id, external_id="nobody")
        with pytest.raises(PersonalDataError, match="has no visitor with this external id"):
            next(lines)

    @pytest.mark.parametrize("statement", EXPORTS)
    def test_a_line_has_the_fields_of_its_type(self, connection: psycopg.Connection, statement: str) -> None:
        about = {"organization_id": uuid4(), "visitor_id": uuid4(), "external_id": "x"}
        with connection.cursor(row_factory=dict_row) as cursor:
            columns = cursor.execute(statements("personal_data")[statement], about).description or []
        names = [column.name for column in columns]
        record = RECORDS.get(statement.removeprefix("export_").removesuffix("s").replace("activitie", "activity"))
        if record is None:
            pytest.skip("no such lines in this version")
        assert names[0] == "type"
        assert set(names[1:]) == set(record.__struct_fields__)

    def test_what_is_read_is_one_state_of_the_database(self, person: Person, connection: psycopg.Connection) -> None:
        before = person.export(connection)
        lines = export_visitor(connection, **person.about)
        first = next(lines)
        person.sides(person.case_ids[0]).say("And another thing")
        assert b"".join((first, *lines)) == before


class TestErasure:
    def test_all_of_it_is_gone_and_nothing_else(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        kept = Person(client, organization)
        before = contents(connection, organization)
        gone = Person(client, organization)
        gone.erase(connection)
        after = contents(connection, organization)
        # Positions go on from where they were: none is given twice.
        assert [before.pop("event_positions"), after.pop("event_positions")] != [[], []]
        tokens = before.pop("api_tokens"), after.pop("api_tokens")
        assert set(tokens[0]) <= set(tokens[1])
        assert after == before
        assert types(kept.export(connection))["message"] == 6

    def test_the_receipt_says_what_was_removed_and_what_an_export_would_have_been(
        self, person: Person, connection: psycopg.Connection
    ) -> None:
        exported = person.export(connection)
        receipt = person.erase(connection)
        assert receipt.removed == {
            "visitor": 1,
            "contact": 2,
            "case": 3,
            # With the notes, and what they have opened.
            "activity": 6,
            "message": 12,
            "event": 6,
        }
        assert (receipt.lines, receipt.sha256) == (21, hashlib.sha256(exported).hexdigest())
        assert receipt.organization_id == person.organization.id
        (noted,) = connection.execute(
            "select erased_at from erased_visitors where organization_id = %s", [person.organization.id]
        ).fetchone() or (None,)
        assert noted == receipt.erased_at

    def test_what_was_done_under_a_former_external_id_goes_too(
        self, person: Person, connection: psycopg.Connection
    ) -> None:
        renamed = f"renamed-{uuid4()}"
        person.organization.update("visitors", "id", person.visitor.id, external_id=renamed)
        person.visitor.external_id = renamed
        assert person.erase(connection).removed["event"] == 6

    def test_what_a_visitor_did_in_a_case_that_is_somebody_elses_now_goes_and_the_case_stays(
        self, person: Person, connection: psycopg.Connection
    ) -> None:
        other = person.organization.visitor()
        person.organization.update("cases", "id", person.case_ids[0], contact_id=other.contact_ids[0])
        receipt = person.erase(connection)
        assert (receipt.removed["case"], receipt.removed["event"]) == (2, 6)
        assert (
            types(
                b"".join(
                    export_visitor(connection, organization_id=person.organization.id, external_id=other.external_id)
                )
            )["case"]
            == 1
        )

    def test_what_another_visitor_did_in_a_case_that_is_now_theirs_stays(
        self, client: FlaskClient, person: Person, connection: psycopg.Connection
    ) -> None:
        former = Person(client, person.organization)
        person.organization.update("cases", "id", former.case_ids[0], contact_id=person.visitor.contact_ids[0])
        receipt = person.erase(connection)
        assert (receipt.removed["case"], receipt.removed["event"]) == (4, 6)
        assert types(former.export(connection))["event"] == 6

    def test_a_visitor_that_is_not_there_is_an_error_and_says_since_when(
        self, person: Person, connection: psycopg.Connection
    ) -> None:
        receipt = person.erase(connection)
        with pytest.raises(PersonalDataError, match=f"it was erased at {receipt.erased_at:%Y-%m-%dT%H:%M:%SZ}$"):
            person.erase(connection)
        with pytest.raises(PersonalDataError, match=r"external id$"):
            erase_visitor(connection, organization_id=person.organization.id, external_id="nobody")

    def test_no_text_is_left_in_a_dump_nor_in_what_the_planner_knows(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        texts = [f"x{uuid4().hex}" for _ in range(9)]
        external_id, first, last, email, phone, subject, description, said, note = texts
        # A table without rows keeps the statistics that it had.
        Person(client, organization)
        person = Person(client, organization)
        organization.update("visitors", "id", person.visitor.id, external_id=external_id)
        person.visitor.external_id = external_id
        contact = {"first_name": first, "last_name": last, "email": email, "phone": phone}
        organization.update("contacts", "id", person.visitor.contact_ids[0], **contact)
        organization.update("cases", "id", person.case_ids[0], subject=subject, description=description)
        person.sides(person.case_ids[0]).say(said)
        person.sides(person.case_ids[0]).note(note)
        connection.execute("analyze visitors, contacts, cases, messages, events")
        before = stored(connection)
        # The planner keeps a sample of each column.
        assert [text for text in texts if text.encode() not in before] == []
        person.erase(connection)
        assert erasure.renew_statistics(connection)
        after = stored(connection)
        assert [text for text in texts if text.encode() in after] == []

    def test_it_waits_for_a_load_of_the_organization(
        self, person: Person, connection: psycopg.Connection, database_url: str
    ) -> None:
        with psycopg.connect(database_url, autocommit=True) as loading, ThreadPoolExecutor(1) as threads:
            with loading.transaction():
                take_turns(loading, [str(person.organization.id)])
                erased = threads.submit(person.erase, connection)
                wait_until_blocks(loading)
                loading.execute(
                    "insert into contacts (organization_id, id, visitor_id, created_at, updated_at)"
                    " values (%s, %s, %s, now(), now())",
                    [person.organization.id, uuid4(), person.visitor.id],
                )
            assert erased.result().removed["contact"] == 3

    def test_a_contact_that_a_load_moves_to_another_visitor_meanwhile_stays_there(
        self, person: Person, connection: psycopg.Connection, database_url: str
    ) -> None:
        """The load has its turn and waits for the contact; the erasure waits for the load, and looks afterwards."""
        heir, moved = person.organization.visitor(contacts=0), person.visitor.contact_ids[0]
        times = {"created_at": LONG_AGO.isoformat(), "updated_at": LONG_AGO.isoformat()}
        about = {"organization_id": str(person.organization.id), "visitor_id": str(heir.id)}
        line = {"type": "contact", "id": str(moved), **about, **times}
        with (
            psycopg.connect(database_url, autocommit=True) as loading,
            ThreadPoolExecutor(2) as threads,
            psycopg.connect(database_url) as holder,
        ):
            whose = [person.organization.id, moved]
            holder.execute("select 1 from contacts where organization_id = %s and id = %s for update", whose)
            loaded = threads.submit(load_with, loading, line)
            wait_until_blocks(holder)
            erased = threads.submit(person.erase, connection)
            with psycopg.connect(database_url, autocommit=True) as observer:
                wait_for(lambda: observer.execute(WAITING_FOR_A_TURN).fetchone() == (1,))
            holder.rollback()
            assert loaded.result().written["contact"] == 1
            assert (erased.result().removed["contact"], erased.result().removed["case"]) == (1, 1)
        left = connection.execute(
            "select x.id, x.visitor_id, count(*) from contacts x join cases c on c.organization_id = %s"
            " and c.contact_id = x.id where x.organization_id = %s group by x.organization_id, x.id",
            [person.organization.id] * 2,
        ).fetchall()
        assert left == [(moved, heir.id, 2)]

    def test_who_waits_in_vain_erases_nothing_and_says_for_whom(
        self, person: Person, connection: psycopg.Connection, database_url: str
    ) -> None:
        before = contents(connection, person.organization)
        with psycopg.connect(database_url, application_name="reporting") as holder:
            about = [person.organization.id, person.case_ids[1]]
            holder.execute("select 1 from cases where organization_id = %s and id = %s for update", about)
            with pytest.raises(
                ErasureBusyError, match=r"gave up waiting for process [0-9]+ .reporting., which uses cases"
            ):
                person.erase(connection, wait=0.2)
        assert contents(connection, person.organization) == before

    @pytest.mark.skipif(citus.IS_USED, reason="Citus has no triggers on what it distributes")
    @pytest.mark.parametrize("table", ["events", "messages", "activities", "cases", "contacts", "visitors"])
    def test_where_one_part_fails_nothing_is_erased(
        self, person: Person, connection: psycopg.Connection, table: str
    ) -> None:
        """Two roles would have to be made for a right that is missing; a trigger fails as well."""
        before = contents(connection, person.organization)
        with connection.transaction(force_rollback=True):
            connection.execute(
                "create function pg_temp.fail() returns trigger language plpgsql as"
                " $$begin raise division_by_zero; end$$"
            )
            connection.execute(f"create trigger fail before delete on {table} execute function pg_temp.fail()".encode())
            with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
                erasure._erase(connection, {**person.about, "visitor_id": person.visitor.id})
            assert contents(connection, person.organization) == before
        assert (
            connection.execute(
                "select 1 from erased_visitors where organization_id = %s", [person.organization.id]
            ).fetchall()
            == []
        )

    def test_the_role_of_the_commands_erases_and_that_of_imports_knows_it(self, roles: Roles, box: SecretBox) -> None:
        CommandDatabase(roles.writing_settings, None).initialize()
        with psycopg.connect(roles.superuser_url, autocommit=True) as superuser:
            organization = Organization(superuser, box)
            visitor = organization.visitor()
            visitor.cases(2)
            about: dict[str, Any] = {"organization_id": organization.id, "external_id": visitor.external_id}
            with CommandDatabase(roles.settings, None).connect() as connection:
                assert len(list(export_visitor(connection, **about))) == 4
                assert erase_visitor(connection, **about).removed["case"] == 2
                assert erasure.renew_statistics(connection)
                summary = load_with(connection, line_of(visitor), mode="each")
                assert [field for _, field, _ in wrong(summary)] == ["external_id"]
            with psycopg.connect(roles.url(roles.writer), autocommit=True) as writer, writer.transaction():
                writer.execute(preamble(organization.id)[-1])
                assert writer.execute("select count(*) from erased_visitors").fetchone() == (1,)
            with CommandDatabase(roles.settings, None).connect() as connection:
                allow_visitor(connection, **about)
                load_with(connection, line_of(visitor))


def line_of(visitor: Visitor) -> Fields:
    return {
        "type": "visitor",
        "id": str(visitor.id),
        "organization_id": str(visitor.organization.id),
        "external_id": visitor.external_id,
    }


def stored(connection: psycopg.Connection) -> bytes:
    """Return what a dump of the database's data holds, and the values in the planner's statistics."""
    info = connection.info
    url = make_conninfo(info.dsn, password=info.password or None)
    command: list[str | Path] = [_find_programs(None) / "pg_dump", "--data-only", "--inserts", url]
    dump = subprocess.run(command, check=True, capture_output=True).stdout
    rows = connection.execute("select s::text from pg_stats s where schemaname = 'public'").fetchall()
    return dump + "\n".join(text for (text,) in rows).encode()


class TestConcurrency:
    def test_a_visitor_who_writes_meanwhile_leaves_nothing_behind(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        for _ in range(times(3, torture=20)):
            person = Person(client, organization)
            stop = threading.Event()

            def write(case_id: UUID, person: Person = person, stop: threading.Event = stop) -> set[int]:
                sides, statuses = person.sides(case_id), set()
                while not stop.is_set():
                    statuses.add(sides.by_visitor("POST", "/messages", {"text": "Hello"}).status_code)
                    statuses.add(
                        sides.by_organization("POST", "/messages", {"text": "Hi", "is_private": True}).status_code
                    )
                    statuses.add(sides.by_visitor("PATCH", body={"is_closed": True}).status_code)
                return statuses

            with ThreadPoolExecutor(3) as threads:
                writing = [threads.submit(write, case_id) for case_id in person.case_ids]
                while types(person.export(connection))["message"] < 12:
                    pass
                person.erase(connection)
                stop.set()
            assert set().union(*(one.result() for one in writing)) <= {200, 201, 404}
            assert nothing_of(connection, person)

    def test_cases_that_move_between_two_contacts_meanwhile_lead_to_no_deadlock(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        for _ in range(times(3, torture=20)):
            person, other = Person(client, organization), organization.visitor()
            contacts = [*map(str, person.visitor.contact_ids), str(other.contact_ids[0])]
            stop = threading.Event()

            def move(
                case_id: UUID,
                person: Person = person,
                stop: threading.Event = stop,
                contacts: list[str] = contacts,
            ) -> set[int]:
                sides, statuses, turn = person.sides(case_id), set(), 0
                while not stop.is_set():
                    turn += 1
                    statuses.add(sides.by_organization("PATCH", body={"contact_id": contacts[turn % 3]}).status_code)
                return statuses

            with ThreadPoolExecutor(3) as threads:
                moving = [threads.submit(move, case_id) for case_id in person.case_ids]
                receipt = person.erase(connection)
                stop.set()
            # Whose case was with the other visitor keeps it, and cannot give it back.
            assert set().union(*(one.result() for one in moving)) <= {200, 400, 404}
            rest = connection.execute(
                "select count(*) from cases where organization_id = %s and contact_id = %s",
                [organization.id, other.contact_ids[0]],
            ).fetchone() or (0,)
            assert receipt.removed["case"] + rest[0] == 3
            assert connection.execute("select 1 from visitors where id = %s", [person.visitor.id]).fetchall() == []

    def test_a_case_that_a_contact_gets_while_cases_are_locked_goes_too(
        self, person: Person, connection: psycopg.Connection, database_url: str
    ) -> None:
        """It starts again, so that it waits for no case while it holds a contact."""
        contact_id = person.visitor.contact_ids[0]
        values = {"id": uuid4(), "case_number": "late", "status": "Open", "priority": 1}
        with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as threads:
            other.execute(
                "insert into cases"
                " (organization_id, contact_id, created_at, updated_at, id, case_number, status, priority)"
                " values (%s, %s, now(), now(), %s, %s, %s, %s)",
                [person.organization.id, contact_id, *values.values()],
            )
            erased = threads.submit(person.erase, connection)
            wait_until_blocks(other)
            other.commit()
            assert erased.result().removed["case"] == 4
        assert nothing_of(connection, person)


def nothing_of(connection: psycopg.Connection, person: Person) -> bool:
    """Tell whether no row is left that belongs to a person."""
    about = {"o": person.organization.id, "cases": person.case_ids, "e": person.visitor.external_id}
    about |= {"visitor": person.visitor.id}
    found = connection.execute(
        """
        select 'activities' from activities where organization_id = %(o)s and case_id = any(%(cases)s)
        union select 'messages' from messages where organization_id = %(o)s and case_id = any(%(cases)s)
        union select 'cases' from cases where organization_id = %(o)s and id = any(%(cases)s)
        union select 'contacts' from contacts where organization_id = %(o)s and visitor_id = %(visitor)s
        union select 'visitors' from visitors where organization_id = %(o)s and external_id = %(e)s
        union select 'events' from events
        where organization_id = %(o)s and (case_id = any(%(cases)s) or external_id = %(e)s)
        """,
        about,
    ).fetchall()
    return found == []


class TestEvents:
    def test_a_relay_goes_on_past_what_was_erased(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        first, second = Person(client, organization), Person(client, organization)
        third = Person(client, organization)
        sides = third.sides(third.case_ids[0])
        second.erase(connection)
        document = sides.events("?after=5&page_size=2").get_json()
        assert ([event["position"] for event in document["results"]], document["last"]) == ([6, 13], 13)
        first.erase(connection)
        # The oldest were erased and not pruned: nothing that is to be had was missed.
        document = sides.events("?after=0&page_size=2").get_json()
        assert ([event["position"] for event in document["results"]], document["has_more"]) == ([13, 14], True)
        third.erase(connection)
        assert sides.events("?after=3").get_json() == {"results": [], "last": 3, "has_more": False}

    def test_no_position_is_given_twice(
        self, client: FlaskClient, person: Person, connection: psycopg.Connection
    ) -> None:
        person.erase(connection)
        other = Person(client, person.organization)
        document = other.sides(other.case_ids[0]).events("?after=6").get_json()
        assert [event["position"] for event in document["results"]] == list(range(7, 13))
        assert {event["external_id"] for event in document["results"]} == {other.visitor.external_id}

    def test_a_client_goes_on_after_the_highest_position_that_load_takes(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        highest = 2**52
        event = {
            "type": "event",
            "organization_id": str(organization.id),
            "position": highest,
            "event_type": "case_closed",
            "created_at": "2024-01-01T00:00:00Z",
            "external_id": "somebody",
            "case_id": str(uuid4()),
            "case_number": "C-1",
        }
        load_with(connection, event)
        person = Person(client, organization)
        sides = person.sides(person.case_ids[0])
        document = sides.events(f"?after={highest}").get_json()
        assert [event["position"] for event in document["results"]] == list(range(highest + 1, highest + 7))
        assert sides.events(f"?after={document['last']}").get_json()["last"] == highest + 6
        with pytest.raises(LoadError, match="position"):
            load_with(connection, event | {"position": highest + 1})


@pytest.fixture
def erased(person: Person, connection: psycopg.Connection) -> Person:
    person.erase(connection)
    return person


class TestRefusal:
    def test_a_load_that_names_the_erased_is_refused(self, erased: Person, connection: psycopg.Connection) -> None:
        before = contents(connection, erased.organization)
        other = erased.line(id=str(uuid4()), external_id=f"other-{uuid4()}")
        with pytest.raises(LoadError) as caught:
            load_with(connection, other, erased.line())
        assert str(caught.value) == f"a.ndjson:2: external_id: {ERASED}"
        assert contents(connection, erased.organization) == before

    def test_under_another_id_too(self, erased: Person, connection: psycopg.Connection) -> None:
        with pytest.raises(LoadError, match="erased"):
            load_with(connection, erased.line(id="4711"))

    def test_so_is_a_row_that_would_get_the_identity(self, erased: Person, connection: psycopg.Connection) -> None:
        other = erased.organization.visitor()
        with pytest.raises(LoadError, match="erased"):
            load_with(connection, erased.line(id=str(other.id)))

    def test_line_by_line_the_others_are_loaded(self, erased: Person, connection: psycopg.Connection) -> None:
        contact = {**erased.line(id="c"), "type": "contact", "visitor_id": str(erased.visitor.id)}
        del contact["external_id"]
        other = erased.line(id=str(uuid4()), external_id=f"other-{uuid4()}")
        summary = load_with(connection, contact, other, erased.line(), mode="each")
        assert wrong(summary) == [(1, "visitor_id", NO_PARENT), (3, "external_id", ERASED)]
        assert summary.written["visitor"] == 1

    def test_who_was_to_become_the_erased_keeps_the_identity(
        self, erased: Person, connection: psycopg.Connection
    ) -> None:
        own, heir = erased.organization.visitor(), erased.organization.visitor()
        lines = erased.line(id=str(own.id)), erased.line(id=str(heir.id), external_id=own.external_id)
        summary = load_with(connection, *lines, mode="each")
        assert wrong(summary) == [
            (1, "external_id", ERASED),
            (2, "external_id", "another visitor of the organization has this identity"),
        ]

    def test_a_removal_of_what_is_gone_is_no_error(self, erased: Person, connection: psycopg.Connection) -> None:
        removal = erased.line(deleted=True)
        del removal["external_id"]
        assert load_with(connection, removal).unchanged == 1

    def test_another_organization_may_have_a_visitor_of_that_name(
        self, erased: Person, connection: psycopg.Connection, box: SecretBox
    ) -> None:
        other = Organization(connection, box)
        line = erased.line(organization_id=str(other.id).upper())
        assert load_with(connection, line).written["visitor"] == 1

    def test_an_identity_is_compared_by_its_bytes(self, erased: Person, connection: psycopg.Connection) -> None:
        line = erased.line(external_id=erased.visitor.external_id.upper())
        assert load_with(connection, line).written["visitor"] == 1

    def test_a_load_that_has_staged_its_lines_before_the_erasure_is_refused(
        self, person: Person, connection: psycopg.Connection, database_url: str
    ) -> None:
        with psycopg.connect(database_url, autocommit=True) as other, ThreadPoolExecutor(1) as threads:
            with connection.transaction():
                take_turns(connection, [str(person.organization.id)])
                loading = threads.submit(load_with, other, person.line())
                wait_until_blocks(connection)
                erasure._erase(connection, {**person.about, "visitor_id": person.visitor.id})
            with pytest.raises(LoadError, match="erased"):
                loading.result()

    @pytest.mark.parametrize("mode", ["all", "each"])
    def test_an_import_that_names_the_erased_is_told(self, client: FlaskClient, erased: Person, mode: str) -> None:
        feed = Feed(client, erased.organization)
        response = feed.post(content_of({"type": "user", "id": "1"}, erased.line()), f"mode={mode}")
        told = response.get_json()
        if mode == "all":
            told = assert_problem(response, 400, "invalid_lines")
        assert told["error_count"] == 1
        assert told["errors"] == [{"line": 2, "field": "external_id", "detail": ERASED}]

    def test_a_jwt_of_the_erased_opens_nothing(self, erased: Person) -> None:
        response = erased.sides(erased.case_ids[0]).by_visitor("POST", "/messages", {"text": "Hello"})
        assert response.status_code == 404

    def test_what_is_kept_is_a_hash_with_a_key_of_the_organizations_own(
        self, client: FlaskClient, erased: Person, connection: psycopg.Connection
    ) -> None:
        rows = connection.execute(
            "select k.key, e.external_id_hash from erasure_keys k join erased_visitors e using (organization_id)"
            " where organization_id = %s",
            [erased.organization.id],
        ).fetchall()
        ((key, hashed),) = rows
        assert hashed == hash_external_id(erased.visitor.external_id, key=key)
        other = Person(client, erased.organization)
        other.erase(connection)
        keys = connection.execute(
            "select key from erasure_keys where organization_id = %s", [erased.organization.id]
        ).fetchall()
        assert keys == [(key,)]
        # As others compute it: echo -n external-id | openssl dgst -sha256 -mac hmac -macopt key:secret
        assert hash_external_id("external-id", key=b"secret").hex() == (
            "3b6fde0ba6affb65b7cabfd9a134085e5cc2070e5ea4fd24746c423795fe85e8"
        )


class TestAllowing:
    def test_the_next_load_may_bring_the_visitor_back(self, erased: Person, connection: psycopg.Connection) -> None:
        allow_visitor(connection, **erased.about)
        assert load_with(connection, erased.line()).written["visitor"] == 1
        # And be erased again.
        assert erased.erase(connection).removed["visitor"] == 1

    def test_it_is_about_one_visitor(self, client: FlaskClient, erased: Person, connection: psycopg.Connection) -> None:
        other = Person(client, erased.organization)
        other.erase(connection)
        allow_visitor(connection, **other.about)
        with pytest.raises(LoadError, match="erased"):
            load_with(connection, erased.line())

    def test_who_was_not_erased_cannot_be_let_back(self, person: Person, connection: psycopg.Connection) -> None:
        for _ in range(2):
            with pytest.raises(PersonalDataError, match="has erased no visitor with this external id"):
                allow_visitor(connection, **person.about)
            Person(person.client, person.organization).erase(connection)


WITH_CONVERSATIONS = {"activity", "message", "event"} <= set(TABLES)


@pytest.mark.skipif(not WITH_CONVERSATIONS, reason="load takes no activities, messages and events yet")
class TestRoundTrip:
    def test_what_was_exported_and_erased_is_loaded_as_it_was(
        self, client: FlaskClient, organization: Organization, connection: psycopg.Connection
    ) -> None:
        Person(client, organization)
        person = Person(client, organization)
        stage = organization.stage()
        values = {
            "case_funnel_stage_id": stage,
            "owner_id": organization.user_id,
            "description": "äöü \u2028 \U0001f600",
        }
        organization.update("cases", "id", person.case_ids[0], **values)
        sides = person.sides(person.case_ids[2])
        sides.by_visitor("PATCH", body={"is_closed": True})
        connection.execute(
            "update activities set ended_at = %s where organization_id = %s and case_id = %s",
            [LONG_AGO + timedelta(days=1), organization.id, person.case_ids[1]],
        )
        without_notes(connection, organization)
        before = contents(connection, organization)
        exported = person.export(connection)
        person.erase(connection)
        lines = [json.loads(line) for line in exported.splitlines()]
        with pytest.raises(LoadError, match="erased"):
            load_with(connection, *lines)
        allow_visitor(connection, **person.about)
        load_with(connection, *reversed(lines))
        assert contents(connection, organization) == before
        assert person.export(connection) == exported

    def test_the_events_of_the_erased_are_refused(self, erased: Person, connection: psycopg.Connection) -> None:
        event = {
            "type": "event",
            "organization_id": str(erased.organization.id),
            "position": 1,
            "event_type": "case_closed",
            "created_at": "2024-01-01T00:00:00Z",
            "external_id": erased.visitor.external_id,
            "case_id": str(uuid4()),
            "case_number": "1",
        }
        with pytest.raises(LoadError, match="external_id: erased"):
            load_with(connection, event)
        assert wrong(load_with(connection, event, mode="each")) == [(1, "external_id", ERASED)]


def without_notes(connection: psycopg.Connection, organization: Organization) -> None:
    """Remove notes, which no export holds."""
    for text in (
        "delete from messages where is_private and organization_id = %s",
        "delete from activities where is_private and organization_id = %s",
        "update activities set private_message_count = 0 where organization_id = %s",
    ):
        connection.execute(text.encode(), [organization.id])

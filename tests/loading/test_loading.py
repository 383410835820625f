import gzip
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS, new_secret
from cases_service.database.statements import source
from cases_service.loading.files import MAXIMUM_LINE_BYTES, LoadFile
from cases_service.loading.load import load
from cases_service.loading.outcome import LoadError, LoadSummary
from tests import citus

Fields = dict[str, Any]

TIME = "2018-06-26T14:58:54.123456Z"
LATER = "2019-01-01T00:00:00.000001Z"
ROOT = Path(__file__).parents[2]
DEMO_FILE = ROOT / "cases_service" / "demo" / "data" / "nyc311.ndjson"
DEMO_ORGANIZATION_ID = b"53b97666-d364-5ae6-931e-d7745d57c1ac"
TABLES = (
    "organizations",
    "users",
    "signing_keys",
    "visitors",
    "contacts",
    "case_funnel_stages",
    "cases",
    "activities",
    "messages",
    "events",
)


class Company:
    """An organization with ids of its own, the lines that describe what belongs to it, and its rows."""

    def __init__(self, connection: psycopg.Connection, box: SecretBox) -> None:
        self.connection = connection
        self.box = box
        self.id = str(uuid4())

    def another(self) -> "Company":
        return Company(self.connection, self.box)

    def organization(self, **fields: Any) -> Fields:
        required = {"name": "Acme", "subscription_status": "active"}
        return {"type": "organization", "id": self.id, **required, **fields}

    def line(self, record_type: str, **fields: Any) -> Fields:
        return {"type": record_type, "id": str(uuid4()), "organization_id": self.id, **fields}

    def user(self, **fields: Any) -> Fields:
        return self.line("user", **fields)

    def visitor(self, **fields: Any) -> Fields:
        return self.line("visitor", **{"external_id": f"visitor-{uuid4()}", **fields})

    def contact(self, **fields: Any) -> Fields:
        return self.line("contact", **fields)

    def stage(self, **fields: Any) -> Fields:
        return self.line("case_funnel_stage", **{"name": "Intake", "position": 1, **fields})

    def case(self, **fields: Any) -> Fields:
        required = {"case_number": str(uuid4()), "status": "Open", "priority": 3}
        return self.line("case", **{**required, "created_at": TIME, "updated_at": TIME, **fields})

    def activity(self, **fields: Any) -> Fields:
        return self.line("activity", **{"channel": "webchat", "created_at": TIME, **fields})

    def message(self, **fields: Any) -> Fields:
        required = {"sender_type": "user", "text": "Hello", "created_at": TIME, "is_private": False}
        return self.line("message", **{**required, **fields})

    def event(self, **fields: Any) -> Fields:
        required = {"event_type": "case_read", "created_at": TIME, "external_id": "ada", "case_number": "1"}
        about = {"organization_id": self.id, "position": 1, "case_id": str(uuid4())}
        return {"type": "event", **about, **required, **fields}

    def key(self, **fields: Any) -> Fields:
        return self.line("signing_key", **{"algorithm": "HS256", "secret": new_secret(), **fields})

    def public_key(self, **fields: Any) -> Fields:
        return self.line("signing_key", **{"algorithm": "EdDSA", "public_key": public_pem(), **fields})

    def load(self, *lines: Fields | bytes) -> LoadSummary:
        """Load lines as one file, `a.ndjson`."""
        return self.load_files(file_of(*lines))

    def load_files(self, *files: LoadFile, advance: Callable[[int], None] = lambda _: None) -> LoadSummary:
        return load(self.connection, files, box=self.box, advance=advance)

    def error(self, *files: LoadFile) -> LoadError:
        """Return what files are refused with."""
        with pytest.raises(LoadError) as caught:
            self.load_files(*files)
        return caught.value

    def refusal(self, *lines: Fields | bytes) -> str:
        """Return what the last of these lines is refused with, after its place."""
        message, place = str(self.error(file_of(*lines))), f"a.ndjson:{len(lines)}: "
        assert message.startswith(place), message
        return message.removeprefix(place)

    def rows(self, table: str) -> dict[str, dict[str, Any]]:
        """Return the rows by id, or by position, each with where it lies in the table."""
        statement = sql.SQL("select ctid::text, * from {} where organization_id = %s")
        with self.connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(statement.format(sql.Identifier(table)), [self.id]).fetchall()
        return {str(row.get("id", row.get("position", row["organization_id"]))): row for row in found}

    def snapshot(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {table: self.rows(table) for table in TABLES}

    def opened(self, row: dict[str, Any]) -> str:
        """Return the secret of a row with a signing key."""
        return self.box.open(
            row["encrypted_secret"],
            organization_id=row["organization_id"],
            key_id=row["id"],
            algorithm=row["algorithm"],
        )


@pytest.fixture
def company(connection: psycopg.Connection, box: SecretBox) -> Company:
    return Company(connection, box)


def removal(line: Fields) -> Fields:
    return {**{name: line[name] for name in ("type", "id", "organization_id")}, "deleted": True}


def public_pem() -> str:
    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def content_of(*lines: Fields | bytes) -> bytes:
    encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return b"".join(line + b"\n" for line in encoded)


def file_of(*lines: Fields | bytes, name: str = "a.ndjson") -> LoadFile:
    return LoadFile(name, io.BytesIO(content_of(*lines)))


def written(summary: LoadSummary) -> dict[str, int]:
    return {record_type: number for record_type, number in summary.written.items() if number}


def removed(summary: LoadSummary) -> dict[str, int]:
    return {record_type: number for record_type, number in summary.removed.items() if number}


def conninfo(company: Company) -> str:
    info = company.connection.info
    return make_conninfo(info.dsn, password=info.password or None)


@contextmanager
def another_connection(company: Company) -> Iterator[psycopg.Connection]:
    with psycopg.connect(conninfo(company), autocommit=True) as connection:
        yield connection


@contextmanager
def loader(company: Company, program: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process that can load its standard input, and runs a program."""
    prelude = """
import signal, sys, psycopg
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs the tests may have had ignored
from cases_service.loading import load as loading
from cases_service.credentials.secret_encryption import SecretBox
def load_standard_input():
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        return loading.load(connection, [loading.LoadFile("-", sys.stdin.buffer)], box=SecretBox([]))
"""
    command = [sys.executable, "-c", prelude + program, conninfo(company)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def take_turn(connection: psycopg.Connection, company: Company) -> None:
    """Take what a load waits for: the lock that queries/loading.sql documents."""
    key = int.from_bytes(UUID(company.id).bytes[-4:], signed=True)
    connection.execute("select pg_advisory_xact_lock(x'63617365'::integer, %s)", [key])


def wait_until_blocks(connection: psycopg.Connection, number: int = 1) -> None:
    """Return when this connection keeps as many others waiting."""
    deadline = time.monotonic() + 30
    statement = "select count(distinct pid) from pg_locks where pg_backend_pid() = any(pg_blocking_pids(pid))"
    if citus.IS_USED:
        statement = f"select greatest(({statement}), ({citus.WAITING_ON_NODES}))"
    while connection.execute(statement).fetchone() != (number,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRows:
    def test_every_type_is_stored_field_by_field(self, company: Company) -> None:
        user = company.user(
            email="ada@example.com",
            first_name="Ada",
            last_name="Byron",
            alias="ab",
            title="Agent",
            avatar_url="a.png",
        )
        visitor = company.visitor(external_id="zip-11421")
        contact = company.contact(
            visitor_id=visitor["id"],
            first_name="Grace",
            last_name="Hopper",
            email="grace@example.com",
            phone="+1 555 0100",
            created_at=TIME,
            updated_at=LATER,
        )
        stage = company.stage(name="Inspection", position=-7)
        case = company.case(
            case_number="39573567",
            contact_id=contact["id"],
            owner_id=user["id"],
            subject="Noise",
            description="Loud music",
            status="Closed",
            priority=5,
            latest_messaging_channel="whatsapp",
            channel_priority=2,
            closed_at=LATER,
            is_waiting=True,
            unread_message_count=2**31 - 1,
            created_at=TIME,
            updated_at=LATER,
            created_by_user_id=user["id"],
            updated_by_user_id=user["id"],
            case_funnel_stage_id=stage["id"],
            visitor_unread_message_count=3,
        )
        organization = company.organization(name="Acme Ltd", subscription_status="inactive", subscription_ends_at=LATER)

        company.load(organization, user, visitor, contact, stage, case)

        assert_stored(company, "users", user)
        assert_stored(company, "visitors", visitor)
        assert_stored(company, "contacts", contact)
        assert_stored(company, "case_funnel_stages", stage)
        assert_stored(company, "cases", case)
        stored = company.rows("organizations")[company.id]
        assert (stored["name"], stored["subscription_status"]) == ("Acme Ltd", "inactive")
        assert stored["subscription_ends_at"] == datetime.fromisoformat(LATER)

    def test_what_is_left_out_is_null_or_its_default(self, company: Company) -> None:
        case, user, contact = company.case(), company.user(), company.contact()

        company.load(company.organization(), case, user, contact)

        stored = company.rows("cases")[case["id"]]
        assert (stored["is_waiting"], stored["unread_message_count"]) == (False, 0)
        nullable = (
            "contact_id",
            "owner_id",
            "subject",
            "description",
            "latest_messaging_channel",
            "closed_at",
        )
        assert [stored[name] for name in nullable] == [None] * len(nullable)
        user_row = company.rows("users")[user["id"]]
        assert [user_row[name] for name in ("email", "first_name", "title", "avatar_url")] == [None] * 4
        contact_row = company.rows("contacts")[contact["id"]]
        assert [contact_row[name] for name in ("visitor_id", "first_name", "phone")] == [None] * 3

    @given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_is_stored_as_it_is(self, company: Company, texts: list[str]) -> None:
        company = company.another()
        tricky = ["\\N", "\\.", "\t\n\r\b\\", "NULL", "", "\u2028", "\U0001f600", '"', "\x7f\x01"]
        cases = [company.case(subject=text) for text in (*texts, *tricky)]

        company.load(company.organization(), *cases)

        stored = company.rows("cases")
        assert {case["id"]: case["subject"] for case in cases} == {
            case_id: row["subject"] for case_id, row in stored.items()
        }

    def test_the_set_up_of_the_connection_does_not_matter(self, company: Company) -> None:
        case, key = company.case(subject="\U0001f600"), company.key()
        with another_connection(company) as odd:
            odd.execute("set client_encoding to 'LATIN1'")
            odd.execute("set datestyle to 'SQL, DMY'")
            odd.prepare_threshold = 0
            odd.row_factory = dict_row  # type: ignore[assignment]
            for _ in range(2):
                load(odd, [file_of(company.organization(), case, key)], box=company.box)

            with pytest.raises(LoadError) as caught:
                load(odd, [file_of({**case, "contact_id": str(uuid4())})], box=company.box)

        assert (caught.value.line, caught.value.field) == (1, "contact_id")
        assert company.rows("cases")[case["id"]]["subject"] == "\U0001f600"
        assert company.opened(company.rows("signing_keys")[key["id"]]) == key["secret"]

    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("2018-06-26T14:58:54.123456Z", "2018-06-26T14:58:54.123456Z"),
            ("2018-06-26 14:58:54z", "2018-06-26T14:58:54Z"),
            ("2018-06-26T14:58:54.9999999Z", "2018-06-26T14:58:54.999999Z"),
            ("2018-06-26T14:58:54-23:59", "2018-06-27T14:57:54Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("0099-01-01T00:00:00Z", "0099-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ],
    )
    def test_a_time_is_stored_as_the_same_instant(self, company: Company, given: str, meant: str) -> None:
        case = company.case(created_at=given)

        company.load(company.organization(), case)

        assert company.rows("cases")[case["id"]]["created_at"] == datetime.fromisoformat(meant)

    def test_ids_with_capitals_are_the_same_ids(self, company: Company) -> None:
        case = company.case()

        company.load(company.organization(), case, {**case, "id": case["id"].upper(), "subject": "last"})

        stored = company.rows("cases")
        assert {case_id: row["subject"] for case_id, row in stored.items()} == {case["id"]: "last"}


def assert_stored(company: Company, table: str, line: Fields) -> None:
    stored = company.rows(table)[line["id"]]
    for name, value in line.items():
        if name != "type":
            assert as_text(stored[name]) == as_text(value), name


def as_text(value: Any) -> str:
    """Return a value in a form that is equal in JSON and in the database."""
    if isinstance(value, str) and value[-1:] == "Z":
        value = datetime.fromisoformat(value)
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


class TestReplacement:
    def test_a_line_replaces_the_row_of_its_id(self, company: Company) -> None:
        case = company.case(subject="Noise", description="Loud", unread_message_count=3, is_waiting=True)
        company.load(company.organization(), case)
        unread = {"unread_message_count": 0, "is_waiting": False}
        without_texts = {name: value for name, value in case.items() if name not in ("subject", "description")}

        summary = company.load({**without_texts, **unread})

        stored = company.rows("cases")[case["id"]]
        assert (stored["subject"], stored["description"], stored["unread_message_count"]) == (None, None, 0)
        assert written(summary) == {"case": 1}

    @pytest.mark.parametrize(
        ("kind", "table", "change"),
        [
            ("user", "users", {"alias": "new"}),
            ("visitor", "visitors", {"external_id": "new"}),
            ("contact", "contacts", {"phone": "new"}),
            ("stage", "case_funnel_stages", {"name": "new"}),
            ("case", "cases", {"subject": "new"}),
        ],
    )
    def test_a_changed_row_is_written_and_an_equal_one_is_left_alone(
        self, company: Company, kind: str, table: str, change: dict[str, str]
    ) -> None:
        changed, equal = getattr(company, kind)(), getattr(company, kind)()
        company.load(company.organization(), changed, equal)
        before = company.rows(table)

        summary = company.load(company.organization(), {**changed, **change}, equal)

        after = company.rows(table)
        assert written(summary) == {changed["type"]: 1}
        assert change.items() <= after[changed["id"]].items()
        assert after[equal["id"]] == before[equal["id"]]

    def test_an_organization_is_replaced(self, company: Company) -> None:
        company.load(company.organization(subscription_ends_at=TIME))

        company.load(company.organization(name="Renamed", subscription_status="inactive"))

        stored = company.rows("organizations")[company.id]
        assert (stored["name"], stored["subscription_status"]) == ("Renamed", "inactive")
        assert stored["subscription_ends_at"] is None

    def test_the_last_line_of_a_row_wins(self, company: Company) -> None:
        user, visitor, contact, stage, case = (
            company.user(),
            company.visitor(),
            company.contact(),
            company.stage(),
            company.case(),
        )
        versions = [
            [
                company.organization(name=text),
                {**user, "alias": text},
                {**visitor, "external_id": text},
                {**contact, "phone": text},
                {**stage, "name": text},
                {**case, "subject": text},
            ]
            for text in ("first", "second", "last")
        ]

        company.load(*chain(*versions))

        assert company.rows("organizations")[company.id]["name"] == "last"
        assert company.rows("users")[user["id"]]["alias"] == "last"
        assert company.rows("visitors")[visitor["id"]]["external_id"] == "last"
        assert company.rows("contacts")[contact["id"]]["phone"] == "last"
        assert company.rows("case_funnel_stages")[stage["id"]]["name"] == "last"
        assert company.rows("cases")[case["id"]]["subject"] == "last"

    def test_the_last_file_wins(self, company: Company) -> None:
        case = company.case(subject="first")
        second = [company.stage(), company.stage(), {**case, "subject": "second"}]
        third = [{**case, "subject": "third"}]

        company.load_files(file_of(company.organization(), case), file_of(*second), file_of(*third))

        assert company.rows("cases")[case["id"]]["subject"] == "third"

    def test_a_line_that_a_later_one_replaces_may_refer_to_nothing(self, company: Company) -> None:
        case = company.case()

        company.load(company.organization(), {**case, "contact_id": str(uuid4())}, case)

        assert company.rows("cases")[case["id"]]["contact_id"] is None

    def test_a_contact_without_times_has_the_time_of_loading(self, company: Company) -> None:
        left_out, null = company.contact(), company.contact(created_at=None, updated_at=None)
        before = datetime.now(UTC) - timedelta(minutes=1)

        company.load(company.organization(), left_out, null)

        for stored in company.rows("contacts").values():
            assert before < stored["created_at"] == stored["updated_at"] < before + timedelta(minutes=2)

    def test_left_out_times_of_an_existing_contact_stay(self, company: Company) -> None:
        contact = company.contact(created_at=TIME, updated_at=LATER)
        company.load(company.organization(), contact)
        newer = "2024-01-01T00:00:00Z"

        company.load(company.line("contact", id=contact["id"], phone="1"))
        first = company.rows("contacts")[contact["id"]]
        company.load(company.line("contact", id=contact["id"], updated_at=newer))
        second = company.rows("contacts")[contact["id"]]

        assert first["phone"] == "1"
        times = [(row["created_at"], row["updated_at"]) for row in (first, second)]
        assert times == [
            (datetime.fromisoformat(TIME), datetime.fromisoformat(LATER)),
            (datetime.fromisoformat(TIME), datetime.fromisoformat(newer)),
        ]


class TestRemoval:
    @pytest.mark.parametrize(
        ("kind", "table"),
        [
            ("visitor", "visitors"),
            ("contact", "contacts"),
            ("stage", "case_funnel_stages"),
            ("case", "cases"),
        ],
    )
    def test_a_row_is_removed_and_no_other(self, company: Company, kind: str, table: str) -> None:
        gone, kept = getattr(company, kind)(), getattr(company, kind)()
        company.load(company.organization(), gone, kept)

        summary = company.load(removal(gone))

        assert list(company.rows(table)) == [kept["id"]]
        assert (written(summary), removed(summary)) == ({}, {gone["type"]: 1})

    def test_a_row_that_does_not_exist_may_be_removed(self, company: Company) -> None:
        case = company.case()
        company.load(company.organization(), case)

        first, second = company.load(removal(case)), company.load(removal(case), removal(company.visitor()))

        assert (removed(first), removed(second)) == ({"case": 1}, {})

    def test_a_row_that_is_given_again_after_its_removal_stays(self, company: Company) -> None:
        case = company.case(subject="old")
        company.load_files(file_of(company.organization(), case))

        company.load_files(file_of(removal(case)), file_of({**case, "subject": "new"}))

        assert company.rows("cases")[case["id"]]["subject"] == "new"

    def test_a_row_that_is_removed_after_it_was_given_is_gone(self, company: Company) -> None:
        new, old = company.case(), company.case()
        company.load_files(file_of(company.organization(), old))

        company.load_files(file_of(new, old), file_of(removal(new), removal(old)))

        assert company.rows("cases") == {}

    def test_rows_are_removed_together_with_what_refers_to_them(self, company: Company) -> None:
        visitor, stage = company.visitor(), company.stage()
        contact = company.contact(visitor_id=visitor["id"])
        case = company.case(contact_id=contact["id"], case_funnel_stage_id=stage["id"])
        lines = [visitor, contact, stage, case]
        company.load(company.organization(), *lines)

        summary = company.load(*map(removal, lines))

        assert removed(summary) == {"visitor": 1, "contact": 1, "case_funnel_stage": 1, "case": 1}
        assert [company.rows(table) for table in ("visitors", "contacts", "cases")] == [
            {},
            {},
            {},
        ]

    def test_a_row_is_removed_where_what_referred_to_it_refers_to_another_now(self, company: Company) -> None:
        old, new = company.contact(), company.contact()
        case = company.case(contact_id=old["id"])
        company.load(company.organization(), old, case)

        company.load(removal(old), {**case, "contact_id": new["id"]}, new)

        assert list(company.rows("contacts")) == [new["id"]]
        assert str(company.rows("cases")[case["id"]]["contact_id"]) == new["id"]

    @pytest.mark.parametrize(
        ("parent", "child", "field"),
        [
            ("visitor", "contact", "visitor_id"),
            ("contact", "case", "contact_id"),
            ("stage", "case", "case_funnel_stage_id"),
        ],
    )
    def test_a_row_that_others_refer_to_is_not_removed(
        self, company: Company, parent: str, child: str, field: str
    ) -> None:
        first, second, kept, free = (getattr(company, parent)() for _ in range(4))
        children = [getattr(company, child)(**{field: line["id"]}) for line in (first, second, kept)]
        company.load(company.organization(), first, second, kept, free, *children)
        before = company.snapshot()

        error = company.error(file_of(kept, removal(free), removal(first), removal(second)))

        reason = "other rows still refer to this one when all files are read"
        assert str(error) == f"a.ndjson:3: deleted: {reason}"
        assert company.snapshot() == before

    def test_a_row_that_a_new_line_refers_to_is_not_removed(self, company: Company) -> None:
        contact = company.contact()
        company.load(company.organization(), contact)

        assert company.refusal(company.case(contact_id=contact["id"]), removal(contact)).startswith("deleted: ")

    def test_a_row_that_is_given_and_removed_again_is_nothing_to_refer_to(self, company: Company) -> None:
        contact = company.contact()

        error = company.error(
            file_of(company.organization(), contact, company.case(contact_id=contact["id"]), removal(contact))
        )

        assert (error.line, error.field) == (3, "contact_id")

    def test_the_removal_of_another_type_is_an_error(self, company: Company) -> None:
        user = company.user()

        assert company.refusal(company.organization(), user, removal(user)).startswith(
            "deleted: only rows of these types"
        )


class TestReferences:
    def test_lines_may_come_in_any_order(self, company: Company) -> None:
        user, visitor, stage = company.user(), company.visitor(), company.stage()
        contact = company.contact(visitor_id=visitor["id"])
        case = company.case(contact_id=contact["id"], owner_id=user["id"], case_funnel_stage_id=stage["id"])

        company.load(case, contact, stage, visitor, user, company.key(), company.organization())

        assert list(company.rows("cases")) == [case["id"]]

    def test_a_line_may_refer_to_another_file(self, company: Company) -> None:
        contact = company.contact()
        case = company.case(contact_id=contact["id"])

        company.load_files(file_of(case), file_of(contact), file_of(company.organization()))

        assert list(company.rows("cases")) == [case["id"]]

    @pytest.mark.parametrize("kind", ["user", "key", "public_key", "visitor", "contact", "stage", "case"])
    def test_an_organization_that_does_not_exist_is_named(self, company: Company, kind: str) -> None:
        known, first, second = getattr(company, kind)(), *(getattr(company.another(), kind)() for _ in range(2))

        error = company.error(file_of(company.organization(), known, first, second))

        reason = "there is no such row in this organization when all files are read"
        assert str(error) == f"a.ndjson:3: organization_id: {reason}"

    @pytest.mark.parametrize("kind", ["visitor", "contact", "stage", "case"])
    def test_a_row_may_be_removed_where_its_organization_does_not_exist(self, company: Company, kind: str) -> None:
        nowhere = company.another()
        gone = removal(getattr(nowhere, kind)())

        assert removed(company.load(gone)) == {}
        assert company.refusal(gone, getattr(nowhere, kind)()).startswith("organization_id: ")

    @pytest.mark.parametrize(
        ("kind", "field"),
        [
            ("contact", "visitor_id"),
            ("case", "contact_id"),
            ("case", "owner_id"),
            ("case", "created_by_user_id"),
            ("case", "updated_by_user_id"),
            ("case", "case_funnel_stage_id"),
        ],
    )
    def test_a_row_that_does_not_exist_is_named(self, company: Company, kind: str, field: str) -> None:
        fine, wrong = getattr(company, kind)(), getattr(company, kind)(**{field: str(uuid4())})

        message = company.refusal(company.organization(), fine, wrong)

        assert message == f"{field}: there is no such row in this organization when all files are read"

    def test_the_first_of_several_wrong_lines_is_named(self, company: Company) -> None:
        wrong = {"contact_id": str(uuid4())}

        error = company.error(
            file_of(company.organization(), name="a.ndjson"),
            file_of(b"", company.case(), company.case(**wrong), company.case(**wrong), name="b.ndjson"),
            file_of(company.case(**wrong), name="c.ndjson"),
        )

        assert (error.file, error.line, error.field) == ("b.ndjson", 3, "contact_id")


class TestNumbersAndIdentities:
    def test_two_cases_may_swap_their_numbers(self, company: Company) -> None:
        first, second = company.case(case_number="1"), company.case(case_number="2")
        company.load(company.organization(), first, second)

        company.load({**first, "case_number": "2"}, {**second, "case_number": "1"})

        stored = company.rows("cases")
        assert [stored[case["id"]]["case_number"] for case in (first, second)] == ["2", "1"]

    def test_two_visitors_may_swap_their_identities(self, company: Company) -> None:
        first, second = company.visitor(external_id="1"), company.visitor(external_id="2")
        company.load(company.organization(), first, second)

        company.load({**first, "external_id": "2"}, {**second, "external_id": "1"})

        stored = company.rows("visitors")
        assert [stored[visitor["id"]]["external_id"] for visitor in (first, second)] == ["2", "1"]

    def test_a_number_is_free_after_a_removal(self, company: Company) -> None:
        old, new = company.case(case_number="1"), company.case(case_number="1")
        company.load(company.organization(), old)

        company.load(new, removal(old))

        assert list(company.rows("cases")) == [new["id"]]

    def test_an_identity_is_free_after_a_removal(self, company: Company) -> None:
        old, new = company.visitor(external_id="1"), company.visitor(external_id="1")
        company.load(company.organization(), old)

        company.load(new, removal(old))

        assert list(company.rows("visitors")) == [new["id"]]

    def test_a_number_that_only_a_replaced_line_claims_is_free(self, company: Company) -> None:
        first, second = company.case(case_number="1"), company.case(case_number="1")

        company.load(company.organization(), first, second, {**first, "case_number": "2"})

        assert len(company.rows("cases")) == 2

    def test_numbers_and_identities_are_told_apart_by_their_bytes(self, company: Company) -> None:
        texts = ["a", "A", "a ", "\u00e9", "e\u0301"]
        lines = [company.case(case_number=text) for text in texts]

        summary = company.load(company.organization(), *lines, *(company.visitor(external_id=t) for t in texts))

        assert (summary.written["case"], summary.written["visitor"]) == (5, 5)

    @pytest.mark.parametrize(
        ("kind", "field", "reason"),
        [
            ("case", "case_number", "another case of the organization has this number"),
            ("visitor", "external_id", "another visitor of the organization has this identity"),
        ],
    )
    def test_a_line_that_claims_what_a_row_has_is_named(
        self, company: Company, kind: str, field: str, reason: str
    ) -> None:
        company.load(company.organization(), getattr(company, kind)(**{field: "taken"}))
        before = company.snapshot()

        error = company.error(file_of(getattr(company, kind)(), getattr(company, kind)(**{field: "taken"})))

        assert str(error) == f"a.ndjson:2: {field}: {reason}"
        assert error.__context__ is None or error.__suppress_context__, "what the server said quotes the row"
        assert company.snapshot() == before

    @pytest.mark.parametrize(("kind", "field"), [("case", "case_number"), ("visitor", "external_id")])
    def test_the_last_of_the_lines_that_claim_the_same_is_named(self, company: Company, kind: str, field: str) -> None:
        make = getattr(company, kind)
        same, also = {field: "same"}, {field: "also the same"}

        error = company.error(
            file_of(company.organization(), make(**same), make(**also), name="a.ndjson"),
            file_of(make(), make(**same), make(**same), make(**also), name="b.ndjson"),
        )

        assert (error.file, error.line, error.field) == ("b.ndjson", 3, field)

    def test_the_claim_of_a_line_that_came_before_is_no_matter_where_the_other_row_was_there(
        self, company: Company
    ) -> None:
        old = company.case(case_number="1")
        company.load(company.organization(), old)

        assert company.refusal(company.case(), company.case(case_number="1")).startswith("case_number: ")


@pytest.fixture
def twin(company: Company) -> Company:
    """Return another organization. Both are in the database."""
    twin = company.another()
    company.load(company.organization(), twin.organization())
    return twin


def twin_line(twin: Company, line: Fields, **fields: Any) -> Fields:
    """Return a line of another organization with the same id."""
    return {**line, "organization_id": twin.id, **fields}


class TestTwoOrganizationsWithTheSameIds:
    @pytest.mark.parametrize(
        ("kind", "table", "change"),
        [
            ("user", "users", {"alias": "ours"}),
            ("visitor", "visitors", {"external_id": "ours"}),
            ("contact", "contacts", {"phone": "ours"}),
            ("stage", "case_funnel_stages", {"name": "ours"}),
            ("case", "cases", {"subject": "ours"}),
        ],
    )
    def test_a_line_changes_one_of_them(
        self, company: Company, twin: Company, kind: str, table: str, change: dict[str, str]
    ) -> None:
        line = getattr(company, kind)()
        company.load(line, twin_line(twin, line))
        before = twin.rows(table)

        company.load({**line, **change})

        assert change.items() <= company.rows(table)[line["id"]].items()
        assert twin.rows(table) == before

    @pytest.mark.parametrize(
        ("kind", "table"),
        [("visitor", "visitors"), ("contact", "contacts"), ("stage", "case_funnel_stages"), ("case", "cases")],
    )
    def test_a_line_removes_one_of_them(self, company: Company, twin: Company, kind: str, table: str) -> None:
        line = getattr(company, kind)()
        company.load(line, twin_line(twin, line))

        company.load(removal(line))

        assert (list(company.rows(table)), list(twin.rows(table))) == ([], [line["id"]])

    def test_a_new_contact_has_the_time_of_loading_and_not_its_twins(self, company: Company, twin: Company) -> None:
        contact = company.contact()
        company.load(twin_line(twin, contact, created_at=TIME, updated_at=TIME))

        company.load(contact)

        assert company.rows("contacts")[contact["id"]]["created_at"] > datetime.fromisoformat(LATER)

    @pytest.mark.parametrize(
        ("kind", "field", "parent"),
        [
            ("contact", "visitor_id", "visitor"),
            ("case", "contact_id", "contact"),
            ("case", "owner_id", "user"),
            ("case", "created_by_user_id", "user"),
            ("case", "updated_by_user_id", "user"),
            ("case", "case_funnel_stage_id", "stage"),
        ],
    )
    def test_a_reference_does_not_cross_over(
        self, company: Company, twin: Company, kind: str, field: str, parent: str
    ) -> None:
        theirs = getattr(twin, parent)()
        company.load(theirs)

        assert company.refusal(getattr(company, kind)(**{field: theirs["id"]})).startswith(f"{field}: ")

    @pytest.mark.parametrize(
        ("parent", "child", "field"),
        [
            ("visitor", "contact", "visitor_id"),
            ("contact", "case", "contact_id"),
            ("stage", "case", "case_funnel_stage_id"),
        ],
    )
    def test_a_row_whose_twin_is_referred_to_may_be_removed(
        self, company: Company, twin: Company, parent: str, child: str, field: str
    ) -> None:
        free, needed = getattr(company, parent)(), getattr(company, parent)()
        ours, theirs = getattr(company, child)(**{field: needed["id"]}), getattr(twin, child)(**{field: free["id"]})
        company.load(free, needed, twin_line(twin, free), ours, theirs)

        assert company.refusal(removal(free), removal(needed)).startswith("deleted: ")
        assert removed(company.load(removal(free))) == {free["type"]: 1}

    @pytest.mark.parametrize(("kind", "field"), [("case", "case_number"), ("visitor", "external_id")])
    def test_what_the_other_has_taken_is_free(self, company: Company, twin: Company, kind: str, field: str) -> None:
        company.load(getattr(twin, kind)(**{field: "free"}), getattr(company, kind)(**{field: "taken"}))
        free, taken = getattr(company, kind)(**{field: "free"}), getattr(company, kind)(**{field: "taken"})

        assert company.refusal(free, taken).startswith(f"{field}: ")
        assert written(company.load(free)) == {free["type"]: 1}


class TestWholeOrNot:
    def test_an_error_in_the_last_file_leaves_nothing_of_the_first(self, company: Company) -> None:
        error = company.error(
            file_of(company.organization(), company.case()),
            file_of(company.case(), b"", company.case(priority=6), name="b.ndjson"),
        )

        assert str(error) == "b.ndjson:3: priority: expected an integer from 1 to 5"
        assert company.rows("organizations") == {}

    def test_an_interruption_leaves_nothing_and_a_connection_that_works(self, company: Company) -> None:
        class Interrupted(io.BytesIO):
            def readline(self, limit: int | None = -1, /) -> bytes:
                line = super().readline(limit)
                if not line:
                    raise KeyboardInterrupt
                return line

        lines = content_of(company.organization(), *(company.case(description="x" * 2**16) for _ in range(32)))

        with pytest.raises(KeyboardInterrupt):
            company.load_files(LoadFile("a.ndjson", Interrupted(lines)))

        assert company.snapshot() == {table: {} for table in TABLES}
        assert written(company.load_files(file_of(company.organization()))) == {"organization": 1}

    def test_an_interruption_ends_a_load_while_the_database_works(self, company: Company) -> None:
        with another_connection(company) as observer, observer.transaction():
            take_turn(observer, company)
            with loader(company, "load_standard_input()") as process:
                assert process.stdin
                process.stdin.write(content_of(company.organization()))
                process.stdin.close()
                wait_until_blocks(observer)
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == -signal.SIGINT

        assert company.snapshot() == {table: {} for table in TABLES}

    def test_a_process_that_is_killed_leaves_nothing(self, company: Company) -> None:
        lines = content_of(company.organization(), *(company.case() for _ in range(100)))
        program = """
import os, signal
write = loading.Load.write
def write_and_die(self):
    write(self)
    os.kill(os.getpid(), signal.SIGKILL)
loading.Load.write = write_and_die
load_standard_input()
"""
        with loader(company, program) as process:
            process.communicate(lines)

        assert process.returncode == -signal.SIGKILL
        assert company.snapshot() == {table: {} for table in TABLES}

    def test_what_only_the_database_refuses_is_an_error_that_quotes_nothing(
        self, empty_schema: psycopg.Connection, company: Company
    ) -> None:
        empty_schema.execute("alter table users add constraint users_odd check (alias <> 'Ada')")

        with pytest.raises(LoadError) as caught:
            load(empty_schema, [file_of(company.organization(), company.user(alias="Ada"))], box=company.box)

        assert str(caught.value) == "the database refuses a row (users_odd)"
        assert caught.value.__suppress_context__


class TestSigningKeys:
    def test_a_secret_is_stored_sealed(self, company: Company) -> None:
        keys = [company.key(algorithm=algorithm) for algorithm in ("HS256", "HS384", "HS512")]

        company.load(company.organization(), *keys)

        stored = company.rows("signing_keys")
        for key in keys:
            row = stored[key["id"]]
            assert key["secret"] not in row["encrypted_secret"]
            assert company.opened(row) == key["secret"]
            assert (row["algorithm"], row["public_key"], row["retired_at"]) == (key["algorithm"], None, None)

    def test_a_secret_is_sealed_before_it_is_staged(self, company: Company) -> None:
        key = company.key(id=str(uuid4()).upper())
        staged: list[dict[str, Any]] = []

        class Watched(io.BytesIO):
            def readline(self, limit: int | None = -1, /) -> bytes:
                with company.connection.cursor(row_factory=dict_row) as cursor:
                    is_there = cursor.execute("select to_regclass('staged_signing_keys') as name").fetchone()
                    if is_there and is_there["name"]:
                        staged[:] = cursor.execute("select * from staged_signing_keys").fetchall()
                return super().readline(limit)

        more_than_a_batch = [company.case(description="x" * 2**16) for _ in range(24)]

        company.load_files(LoadFile("a.ndjson", Watched(content_of(company.organization(), key, *more_than_a_batch))))

        assert len(staged) == 1
        assert key["secret"] not in str(staged)
        assert company.opened(staged[0]) == key["secret"]

    def test_a_public_key_is_stored_as_it_is(self, company: Company) -> None:
        key = company.public_key(retired_at=TIME)

        company.load(company.organization(), key)

        row = company.rows("signing_keys")[key["id"]]
        assert (row["algorithm"], row["public_key"], row["encrypted_secret"]) == (
            "EdDSA",
            key["public_key"],
            None,
        )
        assert row["retired_at"] == datetime.fromisoformat(TIME)

    def test_the_same_line_again_changes_nothing(self, company: Company) -> None:
        lines = company.key(), company.public_key(), company.key(retired_at=TIME)
        company.load(company.organization(), *lines)
        before = company.rows("signing_keys")

        summary = company.load(*lines)

        assert written(summary) == {}
        assert company.rows("signing_keys") == before

    def test_a_public_key_in_another_layout_is_the_same_key(self, company: Company) -> None:
        key = company.public_key()
        company.load(company.organization(), key)

        company.load({**key, "public_key": "\n" + key["public_key"].replace("\n", "\r\n")})

        assert company.rows("signing_keys")[key["id"]]["public_key"] == key["public_key"]

    def test_a_stored_public_key_that_is_none_is_another_key(self, company: Company) -> None:
        key = company.public_key()
        company.load(company.organization(), key)
        company.connection.execute(
            "update signing_keys set public_key = 'none' where organization_id = %s", [company.id]
        )

        assert company.refusal(key) == "public_key: the key material of an existing key never changes"

    @pytest.mark.parametrize(
        ("kind", "change", "message"),
        [
            (
                "key",
                {"secret": "another secret that is long enough"},
                "secret: the key material of an existing key never changes",
            ),
            ("key", {"algorithm": "HS512"}, "algorithm: the algorithm of an existing key never changes"),
            (
                "key",
                {"algorithm": "EdDSA", "secret": None, "public_key": public_pem()},
                "algorithm: the algorithm of an existing key never changes",
            ),
            (
                "public_key",
                {"public_key": public_pem()},
                "public_key: the key material of an existing key never changes",
            ),
        ],
    )
    def test_an_existing_key_never_changes(
        self, company: Company, kind: str, change: dict[str, Any], message: str
    ) -> None:
        key = getattr(company, kind)()
        company.load(company.organization(), key)
        before = company.snapshot()

        assert company.refusal(company.user(), {**key, **change}) == message
        assert company.snapshot() == before

    def test_a_new_key_is_what_its_last_line_says(self, company: Company) -> None:
        key = company.key(retired_at=TIME)
        last = {**key, "secret": new_secret(), "retired_at": None}

        company.load(company.organization(), key, last)

        row = company.rows("signing_keys")[key["id"]]
        assert (company.opened(row), row["retired_at"]) == (last["secret"], None)

    def test_a_time_retires_a_live_key(self, company: Company) -> None:
        key = company.key()
        company.load(company.organization(), key)

        summary = company.load({**key, "retired_at": TIME})

        row = company.rows("signing_keys")[key["id"]]
        assert row["retired_at"] == datetime.fromisoformat(TIME)
        assert company.opened(row) == key["secret"]
        assert written(summary) == {"signing_key": 1}

    @pytest.mark.parametrize("retired_at", [TIME, "9999-01-01T00:00:00Z"])
    def test_a_retirement_is_never_undone(self, company: Company, retired_at: str) -> None:
        key = company.key()
        company.load(company.organization(), {**key, "retired_at": retired_at})

        reason = "the retirement of a key is never undone; give its time, or leave the line out"
        assert company.refusal(key) == f"retired_at: {reason}"
        assert company.refusal({**key, "retired_at": None}) == f"retired_at: {reason}"
        row = company.rows("signing_keys")[key["id"]]
        assert row["retired_at"] == datetime.fromisoformat(retired_at)

    def test_a_retired_key_gets_no_time_in_the_future(self, company: Company) -> None:
        key = company.key(retired_at=TIME)
        company.load(company.organization(), key)

        reason = "the retirement of a key is never undone; give its time, or leave the line out"
        assert company.refusal({**key, "retired_at": "9999-01-01T00:00:00Z"}) == f"retired_at: {reason}"

    @pytest.mark.parametrize("second", ["2017-01-01T00:00:00Z", "2024-01-01T00:00:00Z"])
    def test_the_first_time_of_a_retirement_stays(self, company: Company, second: str) -> None:
        key = company.key()
        company.load(company.organization(), {**key, "retired_at": TIME})

        summary = company.load({**key, "retired_at": second})

        row = company.rows("signing_keys")[key["id"]]
        assert row["retired_at"] == datetime.fromisoformat(TIME)
        assert written(summary) == {}

    @pytest.mark.parametrize(
        ("second", "stored"),
        [
            (TIME, TIME),
            ("9998-01-01T00:00:00Z", "9998-01-01T00:00:00Z"),
            ("9999-06-01T00:00:00Z", "9999-01-01T00:00:00Z"),
        ],
    )
    def test_a_planned_retirement_may_come_earlier_but_not_later(
        self, company: Company, second: str, stored: str
    ) -> None:
        key = company.key()
        company.load(company.organization(), {**key, "retired_at": "9999-01-01T00:00:00Z"})

        company.load({**key, "retired_at": second})

        row = company.rows("signing_keys")[key["id"]]
        assert row["retired_at"] == datetime.fromisoformat(stored)

    def test_a_secret_without_a_key_to_seal_it_is_an_error_that_says_what_to_set(self, company: Company) -> None:
        with pytest.raises(LoadError) as caught:
            load(company.connection, [file_of(company.organization(), company.key())], box=SecretBox([]))

        assert str(caught.value) == (
            "a.ndjson:2: secret: no secret key is configured: "
            "set CASES_SECRET_KEY to 32 random bytes in URL-safe base64"
        )

    def test_a_file_without_secrets_needs_no_secret_key(self, company: Company) -> None:
        files = [file_of(company.organization(), company.public_key())]

        assert load(company.connection, files, box=SecretBox([])).written["signing_key"] == 1

    def test_a_stored_secret_that_does_not_open_is_an_error_that_names_the_key(self, company: Company) -> None:
        key = company.key()
        company.load(company.organization(), key)
        other_box = SecretBox([Fernet.generate_key().decode()])

        with pytest.raises(LoadError) as caught:
            load(company.connection, [file_of(key)], box=other_box)

        assert str(caught.value) == (
            f"a.ndjson:1: secret: no configured secret key opens what is stored of signing key {key['id']}"
        )

    def test_an_organization_may_have_no_more_live_keys_than_the_limit(self, company: Company) -> None:
        keys = [company.key() for _ in range(MAXIMUM_LIVE_KEYS)]
        company.load(company.organization(), *keys[1:])
        planned = {**keys[0], "retired_at": "9999-01-01T00:00:00Z"}
        company.load(planned, company.key(retired_at=TIME))

        message = company.refusal(*keys[1:], company.key())

        assert message == f"id: the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys"
        assert len(company.rows("signing_keys")) == MAXIMUM_LIVE_KEYS + 1

    def test_the_line_that_added_a_key_beyond_the_limit_is_named(self, company: Company) -> None:
        keys = [company.key() for _ in range(MAXIMUM_LIVE_KEYS)]
        company.load(company.organization(), *keys)

        error = company.error(file_of(keys[0], company.key(), company.key(retired_at=TIME), *keys[1:]))

        assert (error.line, error.field) == (2, "id")

    def test_a_key_may_take_the_place_of_one_that_retires(self, company: Company) -> None:
        keys = [company.key() for _ in range(MAXIMUM_LIVE_KEYS)]
        company.load(company.organization(), *keys)

        company.load(company.key(), {**keys[0], "retired_at": TIME})

        assert len(company.rows("signing_keys")) == MAXIMUM_LIVE_KEYS + 1

    def test_a_load_waits_for_one_who_adds_a_key_to_the_organization_and_counts_it(self, company: Company) -> None:
        company.load(company.organization(), *(company.key() for _ in range(MAXIMUM_LIVE_KEYS - 1)))
        company.connection.execute("set default_transaction_isolation to 'repeatable read'")

        with another_connection(company) as maker, ThreadPoolExecutor() as threads:
            with maker.transaction():
                maker.execute("select from organizations where organization_id = %s for no key update", [company.id])
                loading = threads.submit(load, company.connection, [file_of(company.key())], box=company.box)
                wait_until_blocks(maker)
                maker.execute(
                    "insert into signing_keys (organization_id, id, algorithm, public_key)"
                    " values (%s, gen_random_uuid(), 'EdDSA', 'pem')",
                    [company.id],
                )
            error = loading.exception(timeout=30)

        assert str(error).startswith("a.ndjson:1: id: the organization would have more than")


class TestTwoAtOnce:
    def test_loads_take_turns(self, company: Company) -> None:
        first, second = company.case(), company.case()
        company.load(company.organization(), first, second)
        one, two = [{**first, "subject": "1"}, {**second, "subject": "1"}], [first, second]

        with (
            another_connection(company) as other,
            another_connection(company) as observer,
            ThreadPoolExecutor() as threads,
        ):
            with observer.transaction():
                take_turn(observer, company)
                loads: list[Future[LoadSummary]] = [
                    threads.submit(load, company.connection, [file_of(*one)], box=company.box),
                    threads.submit(load, other, [file_of(*reversed(two))], box=company.box),
                ]
                wait_until_blocks(observer, 2)
            for loading in loads:
                assert loading.result(timeout=30).lines == 2

    def test_a_load_gives_up_and_names_whom_it_waits_for(self, company: Company) -> None:
        case = company.case()
        company.load(company.organization(), case)
        with another_connection(company) as holder, holder.transaction():
            holder.execute("update cases set subject = 'mine' where id = %s", [case["id"]])
            pid = holder.info.backend_pid
            with pytest.raises(LoadError) as caught:
                load(company.connection, [file_of({**case, "subject": "yours"})], box=company.box, wait=0.5)
        assert f"process {pid} (" in str(caught.value)
        assert str(caught.value).endswith(": nothing was loaded, try again")
        assert company.rows("cases")[case["id"]]["subject"] == "mine"

    def test_a_load_that_waits_for_its_input_holds_nobody_up(self, company: Company) -> None:
        waiting, end_of_input = threading.Event(), threading.Event()

        class Slow(io.BytesIO):
            def readline(self, limit: int | None = -1, /) -> bytes:
                line = super().readline(limit)
                if not line:
                    waiting.set()
                    assert end_of_input.wait(30)
                return line

        slow = LoadFile("-", Slow(content_of(company.organization(name="slow"), company.key())))
        with another_connection(company) as patient, ThreadPoolExecutor() as threads:
            loading = threads.submit(load, patient, [slow], box=company.box)
            assert waiting.wait(30)
            assert written(company.load(company.organization(name="fast"))) == {"organization": 1}
            end_of_input.set()
            assert written(loading.result(timeout=30)) == {"organization": 1, "signing_key": 1}

        assert company.rows("organizations")[company.id]["name"] == "slow"


class TestStreams:
    def test_blank_lines_and_all_line_ends_are_read(self, company: Company) -> None:
        lines = [json.dumps(line).encode() for line in (company.organization(), company.case(), company.case())]
        content = b"\n \t\r\n" + lines[0] + b"\r\n\n" + lines[1] + b"  \n" + b"\n" + lines[2]

        summary = company.load_files(LoadFile("a.ndjson", io.BytesIO(content)))

        assert summary.lines == 3
        assert len(company.rows("cases")) == 2

    def test_blank_lines_count_for_the_number_of_a_line(self, company: Company) -> None:
        error = company.error(file_of(b"", b"  ", company.organization(), b"", company.case(status="open")))

        assert error.line == 5

    @pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
    def test_an_empty_file_is_no_line(self, company: Company, content: bytes) -> None:
        summary = company.load_files(LoadFile("a.ndjson", io.BytesIO(content)))

        assert (summary.lines, written(summary), removed(summary)) == (0, {}, {})

    def test_no_file_at_all_is_no_line(self, company: Company) -> None:
        assert company.load_files().lines == 0

    def test_a_byte_order_mark_is_accepted_at_the_start_of_a_file_alone(self, company: Company) -> None:
        mark = b"\xef\xbb\xbf"
        organization, case = (json.dumps(line).encode() for line in (company.organization(), company.case()))

        assert company.load_files(file_of(mark + organization), file_of(mark + case)).lines == 2
        error = company.error(file_of(organization, mark + case))
        assert error.line == 2

    def test_a_line_may_be_as_long_as_the_limit_and_no_longer(self, company: Company) -> None:
        organization = json.dumps(company.organization()).encode()
        longest = organization.ljust(MAXIMUM_LINE_BYTES - 1)

        assert company.load_files(file_of(longest)).lines == 1
        error = company.error(file_of(organization, b"", longest + b" "))
        assert str(error) == "a.ndjson:3: longer than 1 MiB"

    def test_a_file_that_cannot_be_read_is_named(self, company: Company) -> None:
        class Broken(io.BytesIO):
            def readline(self, limit: int | None = -1, /) -> bytes:
                line = super().readline(limit)
                if not line:
                    raise OSError(5, "Input/output error")
                return line

        error = company.error(LoadFile("a.ndjson", Broken(content_of(company.organization()))))

        assert str(error) == "a.ndjson:2: cannot be read (Input/output error)"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (gzip.compress(b"{}", mtime=0), "a gzip file: give it a name that ends in .gz, or unpack it"),
            ("\ufeff{}".encode("utf-16-le"), "text in UTF-16: write it in UTF-8"),
            ("\ufeff{}".encode("utf-16-be"), "text in UTF-16: write it in UTF-8"),
            ("{}".encode("utf-16-le"), "text in UTF-16: write it in UTF-8"),
            ("{}".encode("utf-16-be"), "text in UTF-16: write it in UTF-8"),
            (b"PK\x03\x04...", "a zip file: unpack it"),
        ],
    )
    def test_what_is_no_text_in_utf_8_is_named(self, company: Company, content: bytes, reason: str) -> None:
        error = company.error(LoadFile("a.ndjson", io.BytesIO(content)))

        assert str(error) == f"a.ndjson: {reason}"

    def test_a_packed_stream_is_read_line_by_line(self, company: Company) -> None:
        packed = gzip.compress(content_of(company.organization(), *(company.case() for _ in range(100))))

        assert company.load_files(LoadFile("a.gz", gzip.GzipFile(fileobj=io.BytesIO(packed)))).lines == 101

    def test_an_endless_line_of_a_packed_stream_is_refused_at_the_limit(self, company: Company) -> None:
        packed = gzip.compress(b" " * 2**27)

        error = company.error(LoadFile("a.gz", gzip.GzipFile(fileobj=io.BytesIO(packed))))

        assert str(error) == "a.gz:1: longer than 1 MiB"

    @pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: b"{}", lambda packed: packed[:60]])
    def test_a_damaged_packed_stream_is_named(self, company: Company, damage: Callable[[bytes], bytes]) -> None:
        packed = damage(gzip.compress(content_of(company.organization(), *(company.case() for _ in range(100)))))

        error = company.error(LoadFile("a.gz", gzip.GzipFile(fileobj=io.BytesIO(packed))))

        assert error.reason == "cannot be read (it is no gzip file, or a damaged one)"
        assert company.rows("cases") == {}

    def test_every_byte_that_was_read_is_reported(self, company: Company) -> None:
        contents = [content_of(company.organization(), b"", *(company.case() for _ in range(10))), b"\n", b""]
        reported: list[int] = []

        company.load_files(*(LoadFile("-", io.BytesIO(content)) for content in contents), advance=reported.append)

        assert sum(reported) == sum(map(len, contents))
        assert len(reported) > 2

    def test_lines_of_all_types_may_alternate_over_many_batches(self, company: Company) -> None:
        lines = [company.organization()]
        for _ in range(3000):
            visitor = company.visitor()
            lines += [company.case(), company.user(), visitor, company.contact(visitor_id=visitor["id"])]

        summary = company.load(*lines)

        numbers = {"user": 3000, "visitor": 3000, "contact": 3000, "case": 3000}
        assert written(summary) == {"organization": 1, **numbers}
        assert len(company.rows("cases")) == 3000

    def test_memory_does_not_grow_with_the_number_of_lines(self, company: Company) -> None:
        company.load(company.organization())

        few, many = (peak_memory(company, lines) for lines in (2_000, 40_000))

        # The lines between them have 70 MB.
        assert many - few < 12 * 2**20


def peak_memory(company: Company, lines: int) -> int:
    """Return how many bytes a process needs at most to load as many lines of 2 KB from a pipe."""
    program = """
import resource
assert load_standard_input().lines > 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    case = company.case(description="x" * 1500)
    with loader(company, program) as process:
        assert process.stdin
        assert process.stdout
        for number in range(lines):
            process.stdin.write(content_of({**case, "subject": str(number)}))
        process.stdin.close()
        return int(process.stdout.read()) * 1024


@pytest.fixture
def empty_schema(company: Company) -> Iterator[psycopg.Connection]:
    """Yield a connection to a schema of its own with all tables, empty."""
    schema = sql.Identifier(f"load_{uuid4().hex}")
    with another_connection(company) as own:
        own.execute(sql.SQL("create schema {}").format(schema))
        own.execute(sql.SQL("set search_path to {}").format(schema))
        own.execute(source("schema.sql").read_bytes())
        yield own
        own.execute(sql.SQL("drop schema {} cascade").format(schema))


class TestStatistics:
    def test_the_planner_knows_the_tables_that_changed_at_once_and_leaves_the_others(
        self, empty_schema: psycopg.Connection, company: Company
    ) -> None:
        visitor, user = company.visitor(), company.user()
        cases = [company.case() for _ in range(7)]

        load(empty_schema, [file_of(company.organization(), visitor, user, *cases)], box=company.box)
        assert known_rows(empty_schema) == {"organizations": 1, "users": 1, "visitors": 1, "cases": 7}

        load(empty_schema, [file_of(user, company.user(), removal(visitor))], box=company.box)
        assert known_rows(empty_schema) == {"organizations": 1, "users": 2, "visitors": 0, "cases": 7}

    def test_a_load_of_little_leaves_the_statistics_of_a_large_table_alone(
        self, empty_schema: psycopg.Connection, company: Company
    ) -> None:
        users = [company.user() for _ in range(30)]
        load(empty_schema, [file_of(company.organization(), *users)], box=company.box)
        load(empty_schema, [file_of(company.user(), company.user())], box=company.box)
        assert known_rows(empty_schema) == {"organizations": 1, "users": 30}

        load(empty_schema, [file_of(*(company.user() for _ in range(3)))], box=company.box)
        assert known_rows(empty_schema) == {"organizations": 1, "users": 35}

    def test_a_table_that_somebody_holds_is_left_out_and_told(
        self, empty_schema: psycopg.Connection, company: Company
    ) -> None:
        (schema,) = empty_schema.execute("select current_schema").fetchone() or ("",)
        with another_connection(company) as holder, holder.transaction():
            holder.execute(f"lock table {schema}.users in share update exclusive mode".encode())
            summary = load(empty_schema, [file_of(company.organization(), company.user())], box=company.box)

        assert summary.without_statistics == ["users"]
        assert known_rows(empty_schema) == {"organizations": 1}

    def test_a_load_that_waits_for_a_table_keeps_no_reader_waiting(
        self, empty_schema: psycopg.Connection, company: Company
    ) -> None:
        (schema,) = empty_schema.execute("select current_schema").fetchone() or ("",)
        with (
            another_connection(company) as holder,
            another_connection(company) as reader,
            ThreadPoolExecutor() as threads,
        ):
            reader.execute("set statement_timeout = '2s'")
            with holder.transaction():
                # As an index in the making does.
                holder.execute(f"lock table {schema}.cases in share mode".encode())
                lines = file_of(company.organization(), company.case())
                loading = threads.submit(load, empty_schema, [lines], box=company.box)
                wait_until_blocks(holder, 1)
                for table in TABLES:
                    reader.execute(f"select from {schema}.{table}".encode())
            assert loading.result(timeout=30).lines == 2


def known_rows(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many rows the planner takes each table to have, without those that nothing is known of."""
    found = connection.execute(
        "select relname, reltuples from pg_class"
        " where relnamespace = current_schema::regnamespace and relkind = 'r' and reltuples >= 0"
    )
    return {name: int(number) for name, number in found if name in TABLES}


class TestDemoFile:
    def test_the_real_file_is_loaded_whole_and_a_second_time_changes_nothing(self, company: Company) -> None:
        content = DEMO_FILE.read_bytes().replace(DEMO_ORGANIZATION_ID, company.id.encode())

        first = company.load_files(LoadFile("nyc311.ndjson", io.BytesIO(content)))
        before = company.snapshot()
        second = company.load_files(LoadFile("nyc311.ndjson", io.BytesIO(content)))

        loaded = {
            "organization": 1,
            "user": 16,
            "visitor": 167,
            "contact": 863,
            "case_funnel_stage": 3,
            "case": 1000,
        }
        assert written(first) == loaded
        assert first.lines == sum(loaded.values())
        assert [len(before[table]) for table in ("visitors", "contacts", "cases")] == [167, 863, 1000]
        assert (written(second), removed(second)) == ({}, {})
        assert company.snapshot() == before

    def test_its_lines_may_come_in_reverse(self, company: Company) -> None:
        content = DEMO_FILE.read_bytes().replace(DEMO_ORGANIZATION_ID, company.id.encode())
        reverse = b"\n".join(reversed(content.splitlines()))

        company.load_files(LoadFile("nyc311.ndjson", io.BytesIO(reverse)))

        assert [len(company.rows(table)) for table in ("contacts", "cases")] == [863, 1000]


def test_an_error_says_what_is_known_of_its_place() -> None:
    assert str(LoadError("a.ndjson", 3, "priority", "wrong")) == "a.ndjson:3: priority: wrong"
    assert str(LoadError("a.ndjson", 3, None, "wrong")) == "a.ndjson:3: wrong"
    assert str(LoadError(None, None, None, "wrong")) == "wrong"

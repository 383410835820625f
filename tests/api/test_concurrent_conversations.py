"""Many writers at once, some of whose connections are killed: what a plain model says holds, case by case."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from werkzeug.test import TestResponse

from cases_service.application import Application
from cases_service.settings import Settings
from tests.api.conversations import Sides, message_id
from tests.factories import Organization
from tests.pgbouncer import PgBouncer, behind, make_pgbouncer, needs_pgbouncer

__all__ = ["make_pgbouncer"]

PATIENCE = 30.0
ON_ONE_CASE = 32
OVER_MANY = 16
CASES = 200
READERS = 4
PRIORITIES = {"telephony": 4, "webchat": 3, "whatsapp": 2, "email": 1}


@pytest.fixture(params=["postgresql", pytest.param("pgbouncer", marks=needs_pgbouncer)])
def place(request: pytest.FixtureRequest, settings: Settings, make_pgbouncer: Callable[..., PgBouncer]) -> Settings:
    """What is between the service and its database: nothing, or a PgBouncer with fewer connections."""
    patient = msgspec.structs.replace(
        settings, pool_size=8, pool_timeout=PATIENCE, graceful_timeout=600, statement_timeout=PATIENCE
    )
    if request.param == "postgresql":
        return patient
    return behind(make_pgbouncer(seconds=PATIENCE), patient, seconds=PATIENCE)


@pytest.fixture
def sides(make_client: Callable[..., FlaskClient], place: Settings, organization: Organization) -> Sides:
    """A service that lets nobody go who waits; its connections that write can be told from all others."""
    assert place.write_database_url
    changes = msgspec.structs.asdict(place)
    changes["write_database_url"] = make_conninfo(place.write_database_url, application_name=organization.id.hex)
    client = make_client(**changes)
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0], owner_id=organization.user_id)
    return Sides(client, organization, visitor, case_id)


def chances(seed: int) -> random.Random:
    """Return what a thread decides by, the same in every run."""
    return random.Random(seed)  # noqa: S311


def own(sides: Sides, case_id: UUID | None = None) -> Sides:
    """Return the same two sides with a client of their own, for a thread."""
    app = sides.client.application
    assert isinstance(app, Application)
    copy = Sides.__new__(Sides)
    copy.__dict__.update(sides.__dict__)
    copy.client, copy.case_id = app.test_client(), case_id or sides.case_id
    return copy


def settled(send: Callable[[], TestResponse]) -> TestResponse:
    """Return the answer to a request, repeated for as long as the service cannot say what became of it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        response = send()
        if response.status_code not in (503, 504) or time.monotonic() > deadline:
            assert response.status_code in (200, 201), response.json
            return response
        time.sleep(0.01)


@contextmanager
def killing(organization: Organization, database_url: str, pause: float = 0.15) -> Iterator[list[Any]]:
    """End a connection that writes now and then, in the middle of a transaction where it has one."""
    killed: list[Any] = []
    is_over = threading.Event()

    def kill() -> None:
        with psycopg.connect(database_url, autocommit=True) as killer:
            while not is_over.wait(pause):
                killed.extend(
                    killer.execute(
                        "select pid from (select pid from pg_stat_activity where application_name = %s and xact_start"
                        " is not null order by random() limit 1) one where pg_terminate_backend(pid)",
                        [organization.id.hex],
                    ).fetchall()
                )

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


@contextmanager
def rolling_back(database_url: str, statement: str, *parameters: Any) -> Iterator[None]:
    """Change rows that the writers change, hold them for a while, and take it back, again and again."""
    is_over, chance = threading.Event(), chances(0)

    def change() -> None:
        with psycopg.connect(database_url) as other:
            while not is_over.wait(chance.random() / 10):
                other.execute(statement.encode(), parameters)
                time.sleep(chance.random() / 20)
                other.rollback()

    with ThreadPoolExecutor(1) as threads:
        disturber = threads.submit(change)
        try:
            yield
        finally:
            is_over.set()
        disturber.result()


Act = Callable[[], TestResponse]


def acts(sides: Sides, chance: random.Random, known: list[str]) -> Iterator[tuple[str, Act]]:
    """Yield what somebody may do next in a case: by its kind, and safe to repeat."""
    body: dict[str, Any]
    while True:
        match chance.choice(["say", "say", "answer", "answer", "note", "read", "read", "own read", "close", "open"]):
            case "say":
                body = {"id": message_id(), "text": "Hello"}
                yield "say", lambda body=body: sides.by_visitor("POST", "/messages", body)  # type: ignore[misc]
            case "answer" | "note" as kind:
                body = {"id": message_id(), "text": kind, "is_private": kind == "note"}
                body |= chance.choice([{}, {"channel": chance.choice(list(PRIORITIES))}])
                yield kind, lambda body=body: sides.by_organization("POST", "/messages", body)  # type: ignore[misc]
            case "read" | "own read" as kind:
                body = chance.choice([{}, {"until": chance.choice(known)}] if known else [{}])
                send = sides.by_visitor if kind == "read" else sides.by_organization
                yield kind, lambda body=body, send=send: send("PUT", "/read", body)  # type: ignore[misc]
            case kind:
                body = {"is_closed": kind == "close"}
                yield kind, lambda body=body: sides.by_visitor("PATCH", "", body)  # type: ignore[misc]


class Model:
    """What holds of a case after each of the acts that its rows tell of, by the words of the document."""

    def __init__(self, connection: psycopg.Connection, organization: Organization, case_id: UUID) -> None:
        about = [organization.id, case_id]
        with connection.cursor(row_factory=dict_row) as cursor:
            (self.case,) = cursor.execute(
                "select * from cases where organization_id = %s and id = %s", about
            ).fetchall()
            self.messages = cursor.execute(
                "select m.*, a.channel, a.is_private as in_private from messages m join activities a"
                " on a.organization_id = m.organization_id and a.id = m.activity_id"
                " where m.organization_id = %s and m.case_id = %s order by m.created_at, m.id",
                about,
            ).fetchall()
            self.activities = cursor.execute(
                "select * from activities where organization_id = %s and case_id = %s", about
            ).fetchall()
            self.events = cursor.execute(
                "select * from events where organization_id = %s and case_id = %s order by position", about
            ).fetchall()

    def check(self) -> None:
        """Go through the acts in the order of their times, and compare with what is there."""
        expected: dict[str, Any] = {
            "status": "In Progress", "is_waiting": False, "unread_message_count": 0,
            "visitor_unread_message_count": 0, "latest_messaging_channel": None, "channel_priority": None,
        }  # fmt: skip
        said = [message for message in self.messages if not message["is_private"]]
        assert len({message["created_at"] for message in said}) == len(said)
        times = {message["created_at"] for message in said}
        times |= {message["read_at"] for message in said if message["read_at"]}
        times |= {event["created_at"] for event in self.events}
        open_: set[str] = set()
        for time_ in sorted(times):
            self.act(expected, open_, time_, said)
        assert {name: self.case[name] for name in expected} == expected
        assert (self.case["closed_at"] is not None) == (self.case["status"] == "Closed")
        for activity in self.activities:
            own_ = [message for message in self.messages if message["activity_id"] == activity["id"]]
            notes = sum(message["is_private"] for message in own_)
            counts = (activity["message_count"], activity["private_message_count"])
            assert counts == (len(own_) - notes, notes)
            assert not activity["is_private"] or notes == len(own_)
        visible = [activity["channel"] for activity in self.activities if not activity["is_private"]]
        assert len(set(visible)) == len(visible)
        assert [event["message_id"] for event in self.events if event["type"] == "message_created"] == [
            message["id"] for message in said if message["sender_type"] == "visitor"
        ]
        assert [event["created_at"] for event in self.events] == sorted(event["created_at"] for event in self.events)

    def act(self, expected: dict[str, Any], open_: set[str], now: Any, said: list[dict[str, Any]]) -> None:
        event = next((event for event in self.events if event["created_at"] == now), None)
        message = next((message for message in said if message["created_at"] == now), None)
        if message is not None:
            channel = message["channel"]
            open_.add(channel)
            expected["channel_priority"] = max(PRIORITIES[each] for each in open_)
            if channel != "telephony":
                expected["latest_messaging_channel"] = channel
            if message["sender_type"] == "visitor":
                assert event is not None
                expected["is_waiting"] = True
                if expected["status"] in ("Pending", "Closed"):
                    expected["status"] = "In Progress"
            else:
                expected["is_waiting"] = False
                if expected["status"] != "Closed":
                    expected["status"] = "Pending"
                # It says that what the visitor wrote before was read.
                assert all(m["read_at"] <= now for m in said if m["sender_type"] == "visitor" and m["created_at"] < now)
        elif event is not None and event["type"] != "case_read":
            expected["status"] = "Closed" if event["type"] == "case_closed" else "In Progress"
        unread = {
            side: sum(m["sender_type"] == side and m["created_at"] <= now and not (m["read_at"] and m["read_at"] <= now)
                      for m in said)
            for side in ("visitor", "user")
        }  # fmt: skip
        expected |= {"unread_message_count": unread["visitor"], "visitor_unread_message_count": unread["user"]}


@pytest.mark.parametrize("kills", [False, True], ids=["undisturbed", "killed"])
def test_writers_on_one_case_leave_what_the_model_says(sides: Sides, database_url: str, kills: bool) -> None:
    known: list[str] = []
    acknowledged: dict[str, list[TestResponse]] = {}
    lock = threading.Lock()

    def write(seed: int) -> None:
        each = own(sides)
        todo = acts(each, chances(seed), known)
        for _ in range(8):
            kind, act = next(todo)
            response = settled(act)
            with lock:
                acknowledged.setdefault(kind, []).append(response)
                if kind in ("say", "answer"):
                    known.append(response.get_json()["id"])

    changed = (
        "update cases set unread_message_count = unread_message_count + 7, is_waiting = not is_waiting where id = %s"
    )
    with (
        killing(sides.organization, database_url) if kills else nothing() as killed,
        rolling_back(database_url, changed, sides.case_id),
        ThreadPoolExecutor(ON_ONE_CASE) as threads,
    ):
        list(threads.map(write, range(ON_ONE_CASE)))
    assert bool(killed) is kills
    model = Model(sides.organization.connection, sides.organization, sides.case_id)
    model.check()
    ids = {response.get_json()["id"] for kind in ("say", "answer", "note") for response in acknowledged[kind]}
    assert {str(message["id"]) for message in model.messages} == ids


@contextmanager
def nothing() -> Iterator[list[Any]]:
    yield []


class Crowd:
    """Visitors who write into many cases, and readers of what is committed."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        self.cases = [sides.organization.case(sides.visitor.contact_ids[0]) for _ in range(CASES)]
        self.is_over = threading.Event()
        self.said: list[str] = []

    def write(self, seed: int) -> None:
        chance = chances(seed)
        for _ in range(20):
            each = own(self.sides, chance.choice(self.cases))
            body = {"id": message_id(), "text": "Hello"}
            settled(lambda each=each, body=body: each.by_visitor("POST", "/messages", body))  # type: ignore[misc]
            self.said.append(body["id"])
            if chance.random() < 0.2:
                closed = {"is_closed": chance.random() < 0.5}
                settled(lambda each=each, closed=closed: each.by_visitor("PATCH", "", closed))  # type: ignore[misc]
            time.sleep(chance.random() / 50)

    def read(self, number: int) -> list[tuple[int, str, str | None]]:
        """Return what a reader sees that goes on from `last`; the first one is restarted again and again."""
        each, after = own(self.sides), 0
        seen: list[tuple[int, str, str | None]] = []
        while True:
            is_last = self.is_over.is_set()
            document = each.events(f"?after={after}&page_size={number + 1}").get_json()
            seen += [(e["position"], e["type"], e["message"] and e["message"]["id"]) for e in document["results"]]
            after = document["last"]
            if is_last and not document["has_more"]:
                return seen
            if number == 0:
                # It knows no more than the position then.
                each = own(self.sides)


def test_readers_of_events_see_each_once_in_the_same_order(sides: Sides, database_url: str) -> None:
    crowd, organization = Crowd(sides), sides.organization
    taken = "update event_positions set last_position = last_position + 1 where organization_id = %s"
    with ThreadPoolExecutor(OVER_MANY + READERS) as threads:
        readers = [threads.submit(crowd.read, number) for number in range(READERS)]
        try:
            with killing(organization, database_url), rolling_back(database_url, taken, organization.id):
                list(threads.map(crowd.write, range(OVER_MANY)))
        finally:
            crowd.is_over.set()
        first, *others = (reader.result() for reader in readers)
    assert [position for position, _, _ in first] == list(range(1, len(first) + 1))
    assert sorted(message or "" for _, kind, message in first if kind == "message_created") == sorted(crowd.said)
    assert others == [first] * len(others)
    committed = organization.connection.execute(
        "select position from events where organization_id = %s order by position", [organization.id]
    ).fetchall()
    assert [position for (position,) in committed] == [position for position, _, _ in first]

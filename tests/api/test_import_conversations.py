"""POST .../import with what is said in cases: both sides see it as if it had been written by request."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from uuid import UUID, uuid4, uuid5

import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.load import load
from cases_service.loading.outcome import IMPORTED_TYPES, LoadOptions
from tests.api.conversations import Sides, message_id, sides_of
from tests.api.test_import import Feed, Fields, at, case, encode
from tests.api.test_notes_stay_private import everything
from tests.factories import Organization, assert_problem
from tests.loading.test_imports import NEEDED, NO_PARENT
from tests.loading.test_loading import file_of, wait_until_blocks
from tests.torture import times

MODES = ("mode=all", "mode=each")


def activity(key: object, of: object, **fields: Any) -> Fields:
    required = {"case_id": str(of), "channel": "webchat", "created_at": at(0), "updated_at": at(9)}
    return {"type": "activity", "id": str(key), **required, **fields}


def message(key: object, of: object, *, second: int = 0, **fields: Any) -> Fields:
    required = {"sender_type": "user", "text": f"text {key}", "created_at": at(second), "is_private": False}
    return {"type": "message", "id": str(key), "activity_id": str(of), **required, **fields}


def removal(line: Fields) -> Fields:
    return {"type": line["type"], "id": line["id"], "deleted": True}


@pytest.fixture
def sides(client: FlaskClient, organization: Organization) -> Sides:
    return sides_of(client, organization)


@pytest.fixture
def feed(sides: Sides) -> Feed:
    return Feed(sides.client, sides.organization)


def own(feed: Feed, kind: str, text: object) -> str:
    return str(uuid5(UUID(str(feed.organization.id)), f"{kind}:{text}"))


def shown(sides: Sides, below: str, send: Callable[..., Any] | None = None) -> list[Fields]:
    response = (send or sides.by_organization)("GET", below)
    assert response.status_code == 200, response.json
    results: list[Fields] = response.get_json()["results"]
    return results


def milliseconds(time: str) -> str:
    return time.replace("Z", ".000Z")


@pytest.mark.parametrize("query", MODES)
class TestStored:
    def test_both_sides_see_what_lines_say(self, sides: Sides, feed: Feed, query: str) -> None:
        lines = [
            {"type": "user", "id": "7", "first_name": "Grace", "last_name": "Hopper"},
            activity(1, sides.case_id, channel="email", ended_at=at(9)),
            message("a", 1, second=1, sender_type="visitor", read_at=at(2)),
            message("b", 1, second=3, sender_user_id="7"),
            message("c", 1, second=4, sender_type="system"),
            message("d", 1, second=5, sender_user_id="7", is_private=True),
        ]
        random.Random(1).shuffle(lines)  # noqa: S311
        result = feed.send(*lines, query=query)
        assert {name: number for name, number in result["written"].items() if number} == {
            "user": 1,
            "activity": 1,
            "message": 4,
        }
        expected = {
            "id": own(feed, "activity", 1),
            "organization_id": str(feed.organization.id),
            "case_id": str(sides.case_id),
            "channel": "email",
            "created_at": milliseconds(at(0)),
            "updated_at": milliseconds(at(9)),
            "is_ended": True,
            "ended_at": milliseconds(at(9)),
        }
        assert shown(sides, "/activities") == [expected | {"message_count": 4}]
        assert shown(sides, "/activities", sides.by_visitor) == [expected | {"message_count": 3}]
        messages = shown(sides, "/messages")
        assert [one["text"] for one in messages] == ["text a", "text b", "text c", "text d"]
        assert [one["is_private"] for one in messages] == [False, False, False, True]
        assert [one["sender"] and one["sender"]["full_name"] for one in messages] == [
            None,
            "Grace Hopper",
            None,
            "Grace Hopper",
        ]
        first = messages[0]
        assert (first["id"], first["activity_id"]) == (own(feed, "message", "a"), own(feed, "activity", 1))
        assert (first["created_at"], first["read_at"]) == (milliseconds(at(1)), milliseconds(at(2)))
        assert (first["case_id"], first["sender_type"]) == (str(sides.case_id), "visitor")
        assert [one["text"] for one in shown(sides, "/messages", sides.by_visitor)] == ["text a", "text b", "text c"]

    def test_nothing_is_derived_for_the_case(self, sides: Sides, feed: Feed, query: str) -> None:
        before = sides.by_organization("GET")
        feed.send(activity(1, sides.case_id), message("a", 1, sender_type="visitor"), query=query)
        after = sides.by_organization("GET")
        assert after.data == before.data

    def test_the_same_again_is_unchanged(self, sides: Sides, feed: Feed, query: str) -> None:
        lines = [activity(1, sides.case_id), message("a", 1), message("b", 1, is_private=True)]
        feed.send(*lines, query=query)
        result = feed.send(*lines, query=query)
        assert (sum(result["written"].values()), result["unchanged"]) == (0, 3)
        assert shown(sides, "/activities")[0]["message_count"] == 2

    def test_what_is_written_by_request_is_counted_with_it(self, sides: Sides, feed: Feed, query: str) -> None:
        said = sides.say()
        feed.send(message("a", said["activity_id"]), message("b", said["activity_id"], is_private=True), query=query)
        sides.say()
        feed.send(message("a", said["activity_id"], is_private=True), query=query)
        assert shown(sides, "/activities")[0]["message_count"] == 4
        assert shown(sides, "/activities", sides.by_visitor)[0]["message_count"] == 2

    def test_it_is_continued_by_request(self, sides: Sides, feed: Feed, query: str) -> None:
        feed.send(activity(1, sides.case_id), message("a", 1), query=query)
        assert sides.say()["activity_id"] == own(feed, "activity", 1)

    def test_a_case_takes_along_what_is_in_it(self, sides: Sides, feed: Feed, query: str) -> None:
        feed.send(case(1), activity(1, 1), message("a", 1), message("b", 1), query=query)
        result = feed.send(removal(case(1)), message("c", 1), query=query)
        assert (result["removed"]["case"], result["written"]["message"], result["unchanged"]) == (1, 0, 1)
        assert sides.by_organization("GET", "/messages", case_id=own(feed, "case", 1)).status_code == 404

    def test_what_is_moved_into_a_removed_case_goes_with_it(self, sides: Sides, feed: Feed, query: str) -> None:
        said = sides.say()
        lines = [activity(1, sides.case_id), message("a", 1), message("b", said["activity_id"])]
        feed.send(case(1), *lines, query=query)
        events = sides.events().get_json()
        moved = [activity(1, own(feed, "case", 1)), message("b", 1), removal(case(1))]
        result = feed.send(*moved, query=query)
        assert {name: number for name, number in result["removed"].items() if number} == {
            "case": 1,
            "activity": 1,
            "message": 1,
        }
        assert (sum(result["written"].values()), result["unchanged"]) == (0, 0)
        for send in (sides.by_organization, sides.by_visitor):
            assert [one["id"] for one in shown(sides, "/messages", send)] == [said["id"]]
            assert [one["message_count"] for one in shown(sides, "/activities", send)] == [1]
        assert sides.events().get_json() == events

    def test_an_event_stays_without_its_message_that_goes_with_a_removed_case(
        self, sides: Sides, feed: Feed, query: str
    ) -> None:
        said = sides.say()
        moved = activity(said["activity_id"], "gone")
        feed.send(moved, removal(case("gone")), query=query)
        (event,) = sides.events().get_json()["results"]
        assert (event["type"], event["message"]) == ("message_created", None)
        assert shown(sides, "/messages") == []

    def test_messages_and_activities_are_removed(self, sides: Sides, feed: Feed, query: str) -> None:
        lines = [activity(1, sides.case_id), message("a", 1), message("b", 1), message("c", 1, is_private=True)]
        feed.send(*lines, query=query)
        assert feed.send(removal(lines[1]), query=query)["removed"]["message"] == 1
        assert shown(sides, "/activities")[0]["message_count"] == 2
        assert shown(sides, "/activities", sides.by_visitor)[0]["message_count"] == 1
        feed.send(*map(removal, lines), query=query)
        assert shown(sides, "/activities") == []


class TestWrongLines:
    @pytest.mark.parametrize("query", MODES)
    @pytest.mark.parametrize(
        ("line", "field", "detail"),
        [
            (activity(2, "nowhere"), "case_id", NO_PARENT),
            (activity(2, "x", channel="fax"), "channel", "expected one of telephony, webchat, whatsapp, email"),
            (message(2, "nowhere"), "activity_id", NO_PARENT),
            (message(2, 1, sender_user_id="nobody"), "sender_user_id", NO_PARENT),
            (
                message(2, 1, sender_type="visitor", sender_user_id="7"),
                "sender_user_id",
                "expected null: sender_type is not user",
            ),
            (
                message(2, 1, sender_type="visitor", is_private=True),
                "is_private",
                "expected false: a visitor writes no notes",
            ),
            (message(2, 1, is_private=None), "is_private", "expected true or false"),
            (message(2, 1, text=""), "text", "expected a text of 1 to 10,000 characters"),
            (message(2, 1, text="x" * 10_001), "text", "longer than 10,000 characters"),
            ({"type": "activity", "id": "1", "deleted": True}, "deleted", NEEDED),
            ({"type": "event", "position": 1}, "type", f"expected one of {', '.join(IMPORTED_TYPES)}"),
        ],
    )
    def test_one_is_named(self, sides: Sides, feed: Feed, query: str, line: Fields, field: str, detail: str) -> None:
        feed.send(activity(1, sides.case_id), message("a", 1))
        response = feed.post(encode(message("b", 1), line), query)
        found = assert_problem(response, 400, "invalid_lines") if query == "mode=all" else response.get_json()
        assert found["errors"] == [{"line": 2, "field": field, "detail": detail}]
        assert len(shown(sides, "/messages")) == (1 if query == "mode=all" else 2)

    def test_whether_a_message_is_private_has_to_be_said(self, sides: Sides, feed: Feed) -> None:
        line = message("a", 1)
        del line["is_private"]
        problem = assert_problem(feed.post(encode(activity(1, sides.case_id), line)), 400, "invalid_lines")
        assert problem["errors"] == [{"line": 2, "field": "is_private", "detail": "required"}]

    def test_another_organizations_activity_is_none(self, sides: Sides, feed: Feed) -> None:
        said = sides.say()
        stranger = Feed(sides.client, Organization(sides.organization.connection, sides.organization.box))
        problem = assert_problem(stranger.post(encode(message(1, said["activity_id"]))), 400, "invalid_lines")
        assert problem["errors"][0]["field"] == "activity_id"


class TestNotes:
    @pytest.mark.parametrize("query", MODES)
    def test_they_change_nothing_that_a_visitor_gets(self, sides: Sides, feed: Feed, query: str) -> None:
        said = sides.say()
        feed.send(activity(1, sides.case_id), query=query)
        before = everything(sides)
        notes = [
            message("a", said["activity_id"], is_private=True),
            message("b", 1, is_private=True),
            activity(2, sides.case_id),
            message("c", 2, is_private=True),
            message("d", 2, is_private=True, sender_type="system"),
        ]
        feed.send(*notes, query=query)
        assert everything(sides) == before
        feed.send(*notes[:2], activity(2, sides.case_id, ended_at=at(9)), removal(notes[3]), query=query)
        assert everything(sides) == before
        feed.send(*map(removal, (notes[0], notes[1])), query=query)
        assert everything(sides) == before
        assert [one["text"] for one in shown(sides, "/messages") if one["is_private"]] == ["text d"]

    def test_the_activity_that_they_opened_is_shown_with_what_a_visitor_may_see(self, sides: Sides, feed: Feed) -> None:
        feed.send(activity(1, sides.case_id), message("a", 1, is_private=True))
        assert shown(sides, "/activities", sides.by_visitor) == []
        feed.send(message("b", 1))
        assert shown(sides, "/activities", sides.by_visitor)[0]["message_count"] == 1
        assert shown(sides, "/activities")[0]["message_count"] == 2


class TestAtOnce:
    @pytest.mark.parametrize("seed", range(times(2, torture=10)))
    def test_imports_beside_writers_count_every_message_once(
        self, make_client: Callable[..., FlaskClient], organization: Organization, seed: int
    ) -> None:
        """Both sides write and read in two cases while messages, theirs too, are imported, moved and removed."""
        client = make_client(threads=8)
        pair = [sides_of(client, organization) for _ in range(2)]
        feed = Feed(client, organization)
        rooms = [side.say()["activity_id"] for side in pair]

        def write(place: int) -> None:
            for key in range(place, 40, 2):
                same = {"id": own(feed, "message", key), "text": f"text {key}"}
                assert pair[place].by_visitor("POST", "/messages", same).status_code in (200, 201, 409)
                pair[place].answer(is_private=key % 3 == 0)
                assert pair[place].by_organization("PUT", "/read", {}).status_code == 200

        def send(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311
            for start in range(0, 40, 4):
                lines = [message(key, rooms[key % 2], sender_type="visitor") for key in range(start, start + 4)]
                lines += [
                    message(key, chance.choice(rooms), is_private=chance.random() < 0.3, read_at=at(start))
                    for key in chance.sample(range(100, 140), 8)
                ]
                lines = [removal(line) if chance.random() < 0.2 else line for line in lines]
                feed.send(*lines, query=chance.choice(MODES))

        with ThreadPoolExecutor(4) as threads:
            work = [*(threads.submit(write, place) for place in (0, 1)), *(threads.submit(send, seed) for _ in "ab")]
            for one in work:
                one.result()
        rows = organization.connection.execute(
            "select a.message_count, a.private_message_count, count(*) filter (where not m.is_private),"
            " count(*) filter (where m.is_private), bool_and(m.case_id = a.case_id)"
            " from activities a join messages m on m.organization_id = a.organization_id and m.activity_id = a.id"
            " where a.organization_id = %s group by a.id, a.organization_id",
            [organization.id],
        ).fetchall()
        assert len(rows) >= 2
        assert all(row[:2] == row[2:4] and row[4] for row in rows), rows


@pytest.mark.parametrize("is_removal", [False, True], ids=["written", "removed"])
@pytest.mark.parametrize("mode", ["all", "each"])
def test_a_message_that_a_request_writes_into_another_case_meanwhile_is_counted_once(
    sides: Sides, database_url: str, mode: Literal["all", "each"], is_removal: bool
) -> None:
    """The load waits for its activity, after it has looked up which of its messages are stored."""
    about = {"organization_id": str(sides.organization.id)}
    call = activity(uuid4(), sides.organization.case(sides.visitor.contact_ids[0]))
    line = message(message_id(), call["id"])
    load(sides.organization.connection, [file_of(call | about)], box=SecretBox([]))
    lines = file_of(call | about | {"ended_at": at(9)}, (removal(line) if is_removal else line) | about)
    with (
        psycopg.connect(database_url, autocommit=True) as connection,
        ThreadPoolExecutor(1) as threads,
        psycopg.connect(database_url) as holder,
    ):
        whose = [sides.organization.id, call["id"]]
        holder.execute("select 1 from activities where organization_id = %s and id = %s for update", whose)
        loading = threads.submit(load, connection, [lines], box=SecretBox([]), options=LoadOptions(mode=mode))
        wait_until_blocks(holder)
        own_activity = sides.say(id=line["id"])["activity_id"]
        holder.rollback()
        summary = loading.result()
    assert (summary.written["message"], summary.removed["message"]) == (not is_removal, 0)
    counted = sides.organization.connection.execute(
        "select id::text, message_count from activities where organization_id = %s", [sides.organization.id]
    ).fetchall()
    place = own_activity if is_removal else call["id"]
    assert dict(counted) == {own_activity: 0, call["id"]: 0} | {place: 1}
    stored = sides.organization.connection.execute(
        "select activity_id::text from messages where organization_id = %s", [sides.organization.id]
    ).fetchall()
    assert stored == [(place,)]


def test_events_can_be_loaded_and_are_shown_as_before(sides: Sides, organization: Organization) -> None:
    """What export and load bring back: the same answer, and what happens next has the next position."""
    sides.say()
    sides.by_visitor("PATCH", body={"is_closed": True})
    before = sides.events().data
    rows = organization.connection.execute(
        "select jsonb_build_object('type', 'event', 'organization_id', organization_id, 'position', position,"
        " 'event_type', type, 'created_at', created_at, 'external_id', external_id, 'case_id', case_id,"
        " 'case_number', case_number, 'message_id', message_id) from events where organization_id = %s",
        [organization.id],
    ).fetchall()
    organization.connection.execute("delete from events where organization_id = %s", [organization.id])
    assert sides.events().data != before
    load(organization.connection, [file_of(*(line for (line,) in rows))], box=SecretBox([]))
    assert sides.events().data == before
    sides.say()
    assert [event["position"] for event in sides.events().get_json()["results"]] == [1, 2, 3]

"""Conversations: pages of a case's activities and messages, and the writes of visitors and users."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from cases_service.application import Application
from tests.api.conversations import Sides, message_id, sides_of
from tests.documents import block
from tests.factories import LONG_AGO, Organization, assert_problem


@pytest.fixture
def sides(client: FlaskClient, organization: Organization) -> Sides:
    return sides_of(client, organization, unread_message_count=2)


class TestAVisitorsMessage:
    def test_it_is_answered_with_all_of_its_attributes(self, sides: Sides) -> None:
        given = message_id()
        response = sides.by_visitor("POST", "/messages", {"id": given.upper(), "text": "Hello\n\u00e4"})
        assert response.status_code == 201
        message = response.get_json()
        (activity,) = sides.by_visitor("GET", "/activities").get_json()["results"]
        assert list(message.items()) == [
            ("id", given),
            ("organization_id", str(sides.organization.id)),
            ("case_id", str(sides.case_id)),
            ("activity_id", activity["id"]),
            ("sender_type", "visitor"),
            ("sender", None),
            ("text", "Hello\n\u00e4"),
            ("created_at", message["created_at"]),
            ("read_at", None),
        ]
        assert list(activity.items()) == [
            ("id", message["activity_id"]),
            ("organization_id", str(sides.organization.id)),
            ("case_id", str(sides.case_id)),
            ("channel", "webchat"),
            ("created_at", message["created_at"]),
            ("updated_at", activity["updated_at"]),
            ("is_ended", False),
            ("ended_at", None),
            ("message_count", 1),
        ]
        assert sides.by_visitor("GET", "/messages").get_json() == {"next": None, "previous": None, "results": [message]}

    def test_what_follows_for_the_case(self, sides: Sides) -> None:
        before = sides.case()
        sides.say()
        after = sides.case()
        changed = {name: value for name, value in after.items() if before[name] != value}
        assert changed.pop("updated_at") > before["updated_at"]
        assert changed == {
            "is_waiting": True,
            "unread_message_count": 3,
            "latest_messaging_channel": "webchat",
            "channel_priority": 3,
        }

    @pytest.mark.parametrize("status", ["Pending", "Closed"])
    @pytest.mark.parametrize("owned", [True, False])
    def test_it_wakes_a_case(self, client: FlaskClient, organization: Organization, status: str, owned: bool) -> None:
        owner = organization.user_id if owned else None
        sides = sides_of(client, organization, status=status, owner_id=owner)
        sides.say()
        case = sides.case()
        assert (case["status"], case["is_closed"], case["closed_at"]) == (
            "In Progress" if owned else "Open",
            False,
            None,
        )

    def test_where_closed_is_final_it_is_refused(
        self, make_client: Callable[..., FlaskClient], organization: Organization
    ) -> None:
        sides = sides_of(make_client(closed_is_final=True), organization)
        body = {"id": message_id(), "text": "Thanks"}
        assert sides.by_visitor("POST", "/messages", body).status_code == 201
        assert sides.by_visitor("PATCH", body={"is_closed": True}).status_code == 200
        before = sides.case()
        assert_problem(sides.by_visitor("POST", "/messages", {"text": "One more"}), 409, "case_closed")
        assert_problem(sides.by_visitor("PATCH", body={"is_closed": False}), 409, "case_closed")
        # What was said before is repeated without harm.
        assert sides.by_visitor("POST", "/messages", body).status_code == 200
        assert sides.by_visitor("PATCH", body={"is_closed": True}).status_code == 200
        assert sides.case() == before

    def test_the_same_again_is_found_and_changes_nothing(self, sides: Sides) -> None:
        body = {"id": message_id(), "text": "Hello"}
        first = sides.by_visitor("POST", "/messages", body)
        before = sides.case(), sides.events().data
        again = sides.by_visitor("POST", "/messages", body)
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.data == first.data
        assert (sides.case(), sides.events().data) == before

    def test_another_text_under_the_same_id_is_refused(self, sides: Sides) -> None:
        body = {"id": message_id(), "text": "Hello"}
        sides.by_visitor("POST", "/messages", body)
        assert_problem(sides.by_visitor("POST", "/messages", body | {"text": "Hi"}), 409, "id_taken")
        assert_problem(sides.by_organization("POST", "/messages", body | {"is_private": False}), 409, "id_taken")

    def test_an_id_of_another_case_is_taken(self, sides: Sides) -> None:
        other = Sides(
            sides.client, sides.organization, sides.visitor, sides.organization.case(sides.visitor.contact_ids[0])
        )
        body = {"id": message_id(), "text": "Hello"}
        sides.by_visitor("POST", "/messages", body)
        assert_problem(other.by_visitor("POST", "/messages", body), 409, "id_taken")

    def test_an_id_of_another_organization_is_free(self, sides: Sides) -> None:
        other = sides_of(sides.client, Organization(sides.organization.connection, sides.organization.box))
        body = {"id": message_id(), "text": "Hello"}
        for each in (sides, other):
            assert each.by_visitor("POST", "/messages", body).status_code == 201

    def test_it_goes_into_the_newest_webchat_that_has_not_ended(self, sides: Sides) -> None:
        about = {"organization_id": sides.organization.id, "case_id": sides.case_id, "updated_at": LONG_AGO}
        chats = [uuid4() for _ in range(3)]
        for day, (id_, channel) in enumerate(zip([*chats, uuid4()], ["webchat"] * 3 + ["email"], strict=True)):
            at = LONG_AGO.replace(day=day + 1)
            ended = at if id_ == chats[2] else None
            sides.organization.insert("activities", id=id_, channel=channel, created_at=at, ended_at=ended, **about)
        assert sides.say()["activity_id"] == str(chats[1])
        sides.organization.update("activities", "case_id", sides.case_id, ended_at=LONG_AGO)
        assert sides.say()["activity_id"] not in map(str, chats)
        assert sides.say()["activity_id"] not in map(str, chats)

    def test_a_count_that_is_full_stays_full(self, client: FlaskClient, organization: Organization) -> None:
        most = 2**31 - 1
        sides = sides_of(client, organization, unread_message_count=most, visitor_unread_message_count=most)
        sides.say()
        assert sides.case()["unread_message_count"] == most
        sides.answer()
        assert sides.case()["visitor_unread_message_count"] == most


class TestAUsersMessage:
    def test_it_is_answered_with_all_of_its_attributes(self, sides: Sides) -> None:
        message = sides.answer(id=message_id())
        assert list(message)[-2:] == ["read_at", "is_private"]
        assert (message["sender_type"], message["is_private"]) == ("user", False)
        assert message["sender"]["id"] == str(sides.organization.user_id)
        assert message["sender"]["full_name"] == "Ada Byron"
        (shown,) = sides.by_visitor("GET", "/messages").get_json()["results"]
        del message["is_private"]
        assert shown == message

    def test_what_follows_for_the_case(self, sides: Sides) -> None:
        sides.say()
        before = sides.case()
        sides.answer()
        after = sides.case()
        changed = {name: value for name, value in after.items() if before[name] != value}
        assert changed.pop("updated_at") >= before["updated_at"]
        assert changed == {
            "is_waiting": False,
            "unread_message_count": 0,
            "status": "Pending",
            "visitor_unread_message_count": 1,
        }
        first, second = sides.by_organization("GET", "/messages").get_json()["results"]
        assert first["read_at"] == second["created_at"]

    def test_a_closed_case_stays_closed(self, client: FlaskClient, organization: Organization) -> None:
        sides = sides_of(client, organization, status="Closed")
        before = sides.case()
        sides.answer()
        after = sides.case()
        assert (after["status"], after["closed_at"]) == ("Closed", before["closed_at"])

    @pytest.mark.parametrize(
        ("channel", "latest", "priority"),
        [("telephony", None, 4), ("webchat", "webchat", 3), ("whatsapp", "whatsapp", 2), ("email", "email", 1)],
    )
    def test_the_channel_is_noted(self, sides: Sides, channel: str, latest: str | None, priority: int) -> None:
        sides.answer(channel=channel)
        case = sides.case()
        assert (case["latest_messaging_channel"], case["channel_priority"]) == (latest, priority)

    def test_the_priority_is_that_of_the_most_urgent_open_activity(self, sides: Sides) -> None:
        for channel, priority in (("email", 1), ("telephony", 4), ("whatsapp", 4)):
            sides.answer(channel=channel)
            assert sides.case()["channel_priority"] == priority
        sides.organization.connection.execute(
            "update activities set ended_at = now() where case_id = %s and channel = 'telephony'", [sides.case_id]
        )
        sides.answer(channel="email")
        assert sides.case()["channel_priority"] == 2

    def test_without_a_channel_it_goes_where_the_case_is(self, client: FlaskClient, organization: Organization) -> None:
        sides = sides_of(client, organization, latest_messaging_channel="email")
        sides.answer()
        sides.answer(channel="whatsapp")
        sides.answer()
        channels = [
            (each["channel"], each["message_count"])
            for each in sides.by_organization("GET", "/activities").get_json()["results"]
        ]
        assert channels == [("email", 1), ("whatsapp", 2)]

    def test_the_same_again_is_found(self, sides: Sides) -> None:
        body = {"id": message_id(), "text": "Good day", "is_private": False}
        first, again = (sides.by_organization("POST", "/messages", body) for _ in range(2))
        assert (first.status_code, again.status_code, again.data) == (201, 200, first.data)
        for changes in ({"is_private": True}, {"text": "Hi"}):
            assert_problem(sides.by_organization("POST", "/messages", body | changes), 409, "id_taken")

    def test_it_may_be_another_users(self, sides: Sides) -> None:
        other = sides.organization.user(first_name="Grace")
        assert sides.answer(sender_user_id=str(other))["sender"]["first_name"] == "Grace"

    def test_a_case_without_a_contact_can_be_written_to(self, sides: Sides) -> None:
        case_id = sides.organization.case(None)
        body = {"text": "x", "is_private": False}
        assert sides.by_organization("POST", "/messages", body, case_id=case_id).status_code == 201


class TestReading:
    def test_a_visitor_reads_all(self, sides: Sides) -> None:
        sides.answer("1")
        sides.say()
        sides.answer("2")
        before = sides.case()
        response = sides.by_visitor("PUT", "/read", {})
        assert response.status_code == 200
        case = response.get_json()
        assert list(case)[-1] == "visitor_unread_message_count"
        assert case["visitor_unread_message_count"] == 0
        assert (before["visitor_unread_message_count"], case["status"]) == (2, before["status"])
        assert case["updated_at"] >= before["updated_at"]
        read = [each["read_at"] is not None for each in sides.by_visitor("GET", "/messages").get_json()["results"]]
        assert read == [True, True, True]
        events = sides.events().get_json()["results"]
        assert [event["type"] for event in events] == ["message_created", "case_read"]
        assert sides.by_visitor("PUT", "/read", {}).get_json() == case
        assert len(sides.events().get_json()["results"]) == 2

    def test_a_visitor_reads_up_to_a_message(self, sides: Sides) -> None:
        messages = [sides.answer(str(number)) for number in range(3)]
        case = sides.by_visitor("PUT", "/read", {"until": messages[1]["id"]}).get_json()
        assert case["visitor_unread_message_count"] == 1
        assert sides.by_visitor("PUT", "/read", {"until": messages[0]["id"]}).get_json() == case

    def test_the_organization_reads_up_to_a_message(self, sides: Sides) -> None:
        messages = [sides.say(str(number)) for number in range(3)]
        sides.note()
        response = sides.by_organization("PUT", "/read", {"until": messages[0]["id"].upper()})
        assert response.status_code == 200
        assert response.get_json()["unread_message_count"] == 2
        assert response.headers["ETag"] == sides.by_organization("GET").headers["ETag"]
        again = sides.by_organization("PUT", "/read", {"until": messages[0]["id"]})
        assert again.get_json() == response.get_json()
        assert sides.by_organization("PUT", "/read", {}).get_json()["unread_message_count"] == 0
        assert sides.events().get_json()["last"] == len(messages)

    def test_a_count_that_was_loaded_goes_with_what_it_counted(
        self, client: FlaskClient, organization: Organization
    ) -> None:
        sides = sides_of(client, organization, visitor_unread_message_count=7)
        assert sides.by_visitor("PUT", "/read", {}).get_json()["visitor_unread_message_count"] == 0

    def test_a_message_that_is_not_there_is_no_place(self, sides: Sides) -> None:
        other = sides_of(sides.client, sides.organization)
        for until in (message_id(), other.say()["id"]):
            for send in (sides.by_visitor, sides.by_organization):
                problem = assert_problem(send("PUT", "/read", {"until": until}), 400, "invalid_body")
                assert [error["pointer"] for error in problem["errors"]] == ["/until"]

    def test_a_note_is_no_place_for_a_visitor(self, sides: Sides) -> None:
        note = sides.note()
        assert_problem(sides.by_visitor("PUT", "/read", {"until": note["id"]}), 400, "invalid_body")
        assert sides.by_organization("PUT", "/read", {"until": note["id"]}).status_code == 200


class TestClosing:
    def test_a_visitor_closes_and_opens(self, client: FlaskClient, organization: Organization) -> None:
        sides = sides_of(client, organization, owner_id=organization.user_id)
        before = sides.case()
        closed = sides.by_visitor("PATCH", body={"is_closed": True}).get_json()
        assert (closed["status"], closed["is_closed"]) == ("Closed", True)
        assert closed["closed_at"] is not None
        assert closed["updated_at"] > before["updated_at"]
        assert sides.by_visitor("PATCH", body={"is_closed": True}).get_json() == closed
        response = sides.by_visitor("PATCH", body=b'{"is_closed": false}', Content_Type="application/merge-patch+json")
        opened = response.get_json()
        assert (opened["status"], opened["closed_at"]) == ("In Progress", None)
        assert sides.by_visitor("PATCH", body={"is_closed": False}).get_json() == opened
        events = sides.events().get_json()["results"]
        assert [event["type"] for event in events] == ["case_closed", "case_reopened"]
        assert sides.by_visitor("GET").get_json() == opened

    @pytest.mark.parametrize(
        "body", [{}, {"is_closed": "yes"}, {"is_closed": None}, {"is_closed": True, "subject": ""}]
    )
    def test_a_visitor_changes_nothing_else(self, sides: Sides, body: dict[str, Any]) -> None:
        before = sides.case()
        problem = assert_problem(sides.by_visitor("PATCH", body=body), 400, "invalid_body")
        assert [error["pointer"] for error in problem["errors"]] == ["/subject" if "subject" in body else "/is_closed"]
        assert sides.case() == before


BODIES: list[tuple[Any, list[str]]] = [
    ({}, ["/text"]),
    ({"text": ""}, ["/text"]),
    ({"text": "x" * 10_001}, ["/text"]),
    ({"text": "a\0b"}, ["/text"]),
    ({"text": "\ud800"}, ["/text"]),
    ({"text": 1, "id": "1", "channel": "email"}, ["/id", "/text", "/channel"]),
    (b'{"text": "a", "text": "b"}', ["/text"]),
    (b"[]", [""]),
    (b"{", [""]),
]


@pytest.mark.parametrize(("body", "pointers"), BODIES)
def test_every_wrong_member_of_a_message_is_named(sides: Sides, body: Any, pointers: list[str]) -> None:
    response = sides.by_visitor("POST", "/messages", body, Content_Type="application/json")
    problem = assert_problem(response, 400, "invalid_body")
    assert [error["pointer"] for error in problem["errors"]] == pointers


def test_an_organization_says_whether_its_message_is_private(sides: Sides) -> None:
    problem = assert_problem(sides.by_organization("POST", "/messages", {"text": "x"}), 400, "invalid_body")
    assert [error["pointer"] for error in problem["errors"]] == ["/is_private"]
    for values, pointer in (
        ({"is_private": None}, "/is_private"),
        ({"channel": "sms"}, "/channel"),
        ({"sender_user_id": message_id()}, "/sender_user_id"),
        ({"sender_user_id": str(Organization(sides.organization.connection, sides.organization.box).user_id)},
         "/sender_user_id"),
    ):  # fmt: skip
        body = {"text": "x", "is_private": True, **values}
        problem = assert_problem(sides.by_organization("POST", "/messages", body), 400, "invalid_body")
        assert [error["pointer"] for error in problem["errors"]] == [pointer]


def test_a_text_has_ten_thousand_characters_at_the_most(sides: Sides) -> None:
    text = "\U0001f600" * 10_000
    assert sides.say(text)["text"] == text


WRITES = [("POST", "/messages", {"text": "x"}), ("PUT", "/read", {}), ("PATCH", "", {"is_closed": True})]
OWN_WRITES = [("POST", "/messages", {"text": "x", "is_private": True}), ("PUT", "/read", {})]


class TestWhoMay:
    @pytest.mark.parametrize(("method", "below", "body"), WRITES)
    def test_a_visitor_writes_with_the_scope_for_it(
        self, sides: Sides, method: str, below: str, body: dict[str, Any]
    ) -> None:
        sides.portal = sides.organization.token
        problem = assert_problem(sides.by_visitor(method, below, body), 403, "scope_missing")
        assert "visitors:write" in problem["detail"]

    @pytest.mark.parametrize(("method", "below", "body"), OWN_WRITES)
    def test_an_organization_writes_with_the_scope_for_it(
        self, sides: Sides, method: str, below: str, body: dict[str, Any]
    ) -> None:
        for scope in ("visitors:write", "cases:read"):
            sides.system = sides.organization.token_with(scope)
            assert_problem(sides.by_organization(method, below, body), 403, "scope_missing")

    def test_reading_takes_the_scope_for_it(self, sides: Sides) -> None:
        sides.portal = sides.organization.token_with("visitors:write", "cases:write")
        sides.system = sides.organization.token_with("visitors:read", "visitors:write")
        for things in ("/messages", "/activities"):
            assert_problem(sides.by_visitor("GET", things), 403, "scope_missing")
            assert_problem(sides.by_organization("GET", things), 403, "scope_missing")
        assert_problem(sides.events(), 403, "scope_missing")

    def test_where_nothing_is_written_it_says_so(
        self, make_client: Callable[..., FlaskClient], organization: Organization
    ) -> None:
        sides = sides_of(make_client(write_database_url=None), organization)
        for method, below, body in WRITES:
            assert_problem(sides.by_visitor(method, below, body), 403, "read_only_deployment")
        for method, below, body in OWN_WRITES:
            assert_problem(sides.by_organization(method, below, body), 403, "read_only_deployment")
        assert sides.by_visitor("GET", "/messages").status_code == 200
        assert sides.by_organization("GET", "/messages").status_code == 200
        assert sides.events().status_code == 200

    @pytest.mark.parametrize(("method", "below", "body"), [*WRITES, ("GET", "/messages", None)])
    def test_another_visitors_case_is_not_found(self, sides: Sides, method: str, below: str, body: Any) -> None:
        other = sides_of(sides.client, sides.organization)
        foreign = sides_of(sides.client, Organization(sides.organization.connection, sides.organization.box))
        for case_id in (other.case_id, foreign.case_id, sides.organization.case(None), uuid4(), "1", "summary"):
            assert_problem(sides.by_visitor(method, below, body, case_id=case_id), 404, "case_not_found")

    @pytest.mark.parametrize(("method", "below", "body"), [*OWN_WRITES, ("GET", "/activities", None)])
    def test_another_organizations_case_is_not_found(self, sides: Sides, method: str, below: str, body: Any) -> None:
        foreign = sides_of(sides.client, Organization(sides.organization.connection, sides.organization.box))
        for case_id in (foreign.case_id, uuid4(), "1"):
            assert_problem(sides.by_organization(method, below, body, case_id=case_id), 404, "case_not_found")

    @pytest.mark.parametrize(("method", "below", "body"), [*WRITES, ("GET", "/messages", None)])
    def test_an_unknown_visitor_is_not_found(self, sides: Sides, method: str, below: str, body: Any) -> None:
        sides.jwt = sides.organization.jwt("nobody at all")
        assert_problem(sides.by_visitor(method, below, body), 404, "visitor_not_found")


def test_the_first_check_that_fails_decides(sides: Sides) -> None:
    """Scope, read-only, parameters, JWT, the body, visitor, case, conflict: each wrong with all that come later."""
    wrong = sides.organization.jwt("nobody at all", exp=1)
    path = "/messages?page_size=1"
    right, sides.jwt, sides.portal = sides.jwt, wrong, sides.organization.token
    assert_problem(sides.by_visitor("POST", path, b"", case_id="1"), 403, "scope_missing")
    sides.portal = sides.organization.token_with("visitors:write")
    assert_problem(sides.by_visitor("POST", path, b"", case_id="1"), 400, "invalid_parameter")
    assert_problem(sides.by_visitor("POST", "/messages", b"", case_id="1"), 400, "token_expired")
    sides.jwt = sides.organization.jwt("nobody at all")
    assert_problem(sides.by_visitor("POST", "/messages", b"", case_id="1"), 415, "unsupported_media_type")
    long = b'{"text": "' + b"x" * 2**20 + b'"}'
    json = {"Content_Type": "application/json"}
    assert_problem(sides.by_visitor("POST", "/messages", long, case_id="1", **json), 413, "body_too_large")
    assert_problem(sides.by_visitor("POST", "/messages", {}, case_id="1"), 400, "invalid_body")
    assert_problem(sides.by_visitor("POST", "/messages", {"text": "x"}, case_id="1"), 404, "visitor_not_found")
    sides.jwt = right
    assert_problem(sides.by_visitor("POST", "/messages", {"text": "x"}, case_id="1"), 404, "case_not_found")


def test_a_body_is_read_once_although_the_gate_asks_twice(sides: Sides) -> None:
    """A key that is retired meanwhile makes what was guessed wrong."""
    sides.say("1")
    sides.organization.key()
    sides.say("2")
    assert sides.texts(sides.by_visitor) == ["1", "2"]


class TestPages:
    @pytest.fixture
    def filled(self, sides: Sides) -> Sides:
        for number in range(7):
            sides.say(str(number))
            sides.note(f"note {number}")
        return sides

    @pytest.mark.parametrize("ordering", ["created_at", "-created_at"])
    @pytest.mark.parametrize("of", ["visitor", "organization"])
    @pytest.mark.parametrize("things", ["messages", "activities"])
    def test_a_walk_visits_everything_once_and_comes_back(
        self, filled: Sides, ordering: str, of: str, things: str
    ) -> None:
        for channel in ("email", "whatsapp", "telephony"):
            filled.answer(channel=channel, is_private=False)
        send = filled.by_visitor if of == "visitor" else filled.by_organization
        whole = send("GET", f"/{things}?page_size=100&ordering={ordering}").get_json()
        assert (whole["next"], whole["previous"]) == (None, None)
        assert len(whole["results"]) == {"messages": 10 if of == "visitor" else 17, "activities": 4}[things]
        times = [each["created_at"] for each in whole["results"]]
        assert times == sorted(times, reverse=ordering.startswith("-"))
        pages = [send("GET", f"/{things}?page_size=3&ordering={ordering}").get_json()]
        while pages[-1]["next"]:
            pages.append(self.follow(filled, send, pages[-1]["next"]))
        assert [each for page in pages for each in page["results"]] == whole["results"]
        back = pages[-1]
        for page in reversed(pages[:-1]):
            back = self.follow(filled, send, back["previous"])
            assert back == page
        assert back["previous"] is None

    @staticmethod
    def follow(sides: Sides, send: Any, link: str) -> Any:
        _, things, query = link.rpartition("/")[2].partition("?")[0], *link.rpartition("/")[2].split("?")
        response = send("GET", f"/{things}?{query}")
        assert response.status_code == 200, response.json
        return response.get_json()

    def test_links_keep_the_form_and_the_other_parameters(self, filled: Sides) -> None:
        link = filled.by_visitor("GET", "/messages?page_size=2").get_json()["next"]
        start = f"http://localhost/api/v5/orgs/{filled.organization.id}/external-visitors/-/cases/{filled.case_id}"
        assert link.startswith(f"{start}/messages?page_size=2&cursor=")
        link = filled.by_organization("GET", "/messages?format=json&page_size=2").get_json()["next"]
        start = f"http://localhost/api/v5/orgs/{filled.organization.id}/cases/{filled.case_id}"
        assert link.startswith(f"{start}/messages?format=json&page_size=2&cursor=")

    def test_a_cursor_is_of_one_walk(self, filled: Sides) -> None:
        other = Sides(filled.client, filled.organization, filled.visitor,
                      filled.organization.case(filled.visitor.contact_ids[0]))  # fmt: skip
        other.say()

        def cursor(response: Any) -> str:
            return str(response.get_json()["next"].partition("cursor=")[2])

        own = cursor(filled.by_visitor("GET", "/messages?page_size=1"))
        theirs = cursor(filled.by_organization("GET", "/messages?page_size=1"))
        refused = [
            filled.by_visitor("GET", f"/activities?cursor={own}"),
            filled.by_visitor("GET", f"/messages?cursor={own}&ordering=-created_at"),
            filled.by_visitor("GET", f"/messages?cursor={theirs}"),
            filled.by_organization("GET", f"/messages?cursor={own}"),
            other.by_visitor("GET", f"/messages?cursor={own}"),
            filled.by_visitor("GET", f"?cursor={own}".replace("?", "/messages?") + "x"),
            filled.client.get(
                f"{filled.organization.cases_path.replace('/cases', '/external-visitors/-/cases')}?cursor={own}",
                headers={"Authorization": f"Token {filled.portal}", "X-External-Identity": filled.jwt},
            ),
        ]
        for response in refused:
            assert_problem(response, 400, "invalid_cursor")
        stranger = sides_of(filled.client, filled.organization)
        stranger.case_id = filled.case_id
        assert_problem(stranger.by_visitor("GET", f"/messages?cursor={own}"), 400, "invalid_cursor")

    @pytest.mark.parametrize("query", ["page_size=0", "page_size=101", "ordering=updated_at", "cursor=", "fields=id"])
    def test_a_wrong_parameter_is_named(self, sides: Sides, query: str) -> None:
        for send in (sides.by_visitor, sides.by_organization):
            problem = assert_problem(send("GET", f"/messages?{query}"), 400, "invalid_parameter")
            assert [error["parameter"] for error in problem["errors"]] == [query.partition("=")[0]]

    @pytest.mark.parametrize("things", ["/messages", "/activities"])
    def test_what_is_known_is_not_sent_again(self, filled: Sides, things: str) -> None:
        for send in (filled.by_visitor, filled.by_organization):
            first = send("GET", things)
            tag = first.headers["ETag"]
            assert first.headers["Cache-Control"] == "private, no-cache"
            again = send("GET", things, If_None_Match=tag)
            assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", tag)
            filled.answer()
            assert send("GET", things, If_None_Match=tag).status_code == 200

    def test_a_read_mark_changes_what_is_shown(self, filled: Sides) -> None:
        tag = filled.by_visitor("GET", "/messages").headers["ETag"]
        filled.by_organization("PUT", "/read", {})
        assert filled.by_visitor("GET", "/messages", If_None_Match=tag).status_code == 200

    def test_a_case_without_messages_has_an_empty_page(self, sides: Sides) -> None:
        empty: dict[str, Any] = {"next": None, "previous": None, "results": []}
        for send in (sides.by_visitor, sides.by_organization):
            for things in ("/messages", "/activities"):
                assert send("GET", things).get_json() == empty
                assert send("HEAD", things + "/").status_code == 200

    def test_a_page_whose_messages_have_gone_leads_back(self, filled: Sides) -> None:
        page = filled.by_visitor("GET", "/messages?page_size=3").get_json()
        filled.organization.connection.execute("delete from messages where case_id = %s", [filled.case_id])
        kept = filled.say("kept")
        for message in page["results"][-1:]:
            filled.organization.insert("messages", id=message["id"], organization_id=filled.organization.id,
                                       case_id=filled.case_id, activity_id=message["activity_id"], text="back",
                                       sender_type="visitor", created_at=LONG_AGO, is_private=False)  # fmt: skip
        after = self.follow(filled, filled.by_visitor, page["next"])
        assert [each["id"] for each in after["results"]] == [kept["id"]]
        before = self.follow(filled, filled.by_visitor, after["previous"])
        assert [each["text"] for each in before["results"]] == ["back"]


class TestCounts:
    def test_the_summary_counts_what_the_visitor_has_not_read(self, sides: Sides) -> None:
        sides.answer()
        sides.answer()
        path = sides.visitor.path + "/summary"
        summary = sides.client.get(path, headers=sides.organization.headers()).get_json()
        assert list(summary)[-1] == "visitor_unread_message_count"
        assert summary["visitor_unread_message_count"] == 2

    def test_a_case_shows_it_last(self, sides: Sides) -> None:
        sides.answer()
        (listed,) = sides.client.get(sides.visitor.path, headers=sides.organization.headers()).get_json()["results"]
        for case in (listed, sides.by_visitor("GET").get_json(), sides.case()):
            assert list(case)[-1] == "visitor_unread_message_count"
            assert case["visitor_unread_message_count"] == 1

    def test_a_removed_case_takes_everything_along(self, sides: Sides) -> None:
        sides.say()
        sides.note()
        assert sides.by_organization("DELETE").status_code == 204
        for table in ("activities", "messages"):
            rows = sides.organization.connection.execute(
                f"select 1 from {table} where organization_id = %s".encode(), [sides.organization.id]
            ).fetchall()
            assert rows == []
        (event,) = sides.events().get_json()["results"]
        assert (event["case_id"], event["message"]) == (str(sides.case_id), None)


def test_the_message_of_the_document_can_be_sent(sides: Sides) -> None:
    body = json.loads(block("docs/api.md", "json", 'Is there any news?"}\n'))
    assert sides.say(**body)["id"] == body["id"]


def test_the_document_lists_the_routes(app: Application) -> None:
    listed = [line.split() for line in block("docs/api.md", "text", "/activities").splitlines() if line]
    listed += [line.partition("?")[0].split() for line in block("docs/api.md", "text", "/events?").splitlines()]
    routes = {
        (method, rule.rule.replace("<uuid:", "<").replace("<token>", "<external_id_jwt_token>"))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
        if rule.endpoint.partition(".")[0] in ("conversations", "organization_conversations")
    }
    assert {(method, path) for method, path in listed} == routes

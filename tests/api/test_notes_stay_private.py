"""A note among users changes no byte that a visitor can get, wherever there can be one."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.api.conversations import Sides, message_id, sides_of
from tests.factories import LONG_AGO, Organization, cases_path

# Each is said of a request, and not of what is shown.
VARYING = {"X-Request-ID", "Date"}


@pytest.fixture(params=["empty", "talked", "ended", "closed", "telephony"])
def sides(request: pytest.FixtureRequest, client: FlaskClient, organization: Organization) -> Sides:
    """A case in each of the states that a note can find it in."""
    sides = sides_of(client, organization)
    # Another case, with whose messages those of the first could be mixed up.
    other = Sides(client, organization, sides.visitor, organization.case(sides.visitor.contact_ids[0]))
    other.say("Elsewhere")
    if request.param != "empty":
        for number in range(3):
            sides.say(str(number))
            sides.answer(f"answer {number}", channel="email")
    match request.param:
        case "ended":
            organization.update("activities", "case_id", sides.case_id, ended_at=LONG_AGO)
        case "closed":
            assert sides.by_visitor("PATCH", body={"is_closed": True}).status_code == 200
        case "telephony":
            sides.answer("Called", channel="telephony")
    return sides


def requests() -> Iterator[str]:
    """Yield everything that a visitor can ask for, below the collection of cases."""
    yield from ("", "?ordering=-updated_at&page_size=1", "?fields=id,updated_at", "/summary", "?is_closed=true")
    yield from ("/{case}", "/{case}?fields=visitor_unread_message_count")
    for things in ("activities", "messages"):
        yield from (
            f"/{{case}}/{things}",
            f"/{{case}}/{things}?ordering=-created_at",
            f"/{{case}}/{things}?page_size=1",
        )


def everything(sides: Sides) -> dict[str, tuple[int, bytes, dict[str, str]]]:
    """Return status, body and headers of everything that a visitor gets, each page by its links; and the events."""
    found: dict[str, tuple[int, bytes, dict[str, str]]] = {}
    start = cases_path(sides.organization.id, "-")
    waiting = [start + request.format(case=sides.case_id) for request in requests()]
    while waiting:
        path = waiting.pop()
        headers = {"Authorization": f"Token {sides.portal}", "X-External-Identity": sides.jwt}
        response = sides.client.get(path, headers=headers)
        shown = {name: value for name, value in response.headers.items() if name not in VARYING}
        found[path] = response.status_code, response.data, shown
        document: dict[str, Any] = response.get_json()
        links = (document.get("next"), document.get("previous"))
        waiting += [link for link in links if link and link not in found and link not in waiting]
    found["events"] = 200, sides.events().data, {}
    return found


def test_writing_one_changes_nothing_that_a_visitor_gets(sides: Sides) -> None:
    before = everything(sides)
    assert {status for status, _, _ in before.values()} == {200}
    for channel in (None, "webchat", "telephony", "whatsapp", "email"):
        given = {} if channel is None else {"channel": channel}
        written = sides.note("Of nobody's business", **given)
        sides.note("Nor this", id=message_id(), sender_user_id=str(sides.organization.user()))
        assert everything(sides) == before
        assert sides.by_organization("PUT", "/read", {"until": written["id"]}).status_code == 200
        before = everything(sides)
    assert "business" in sides.by_organization("GET", "/messages?ordering=-created_at").get_data(as_text=True)


def test_what_is_said_after_one_is_as_without_it(client: FlaskClient, organization: Organization) -> None:
    """Two cases alike, of which one has notes: apart from ids and times, what follows is the same."""
    pair = [sides_of(client, organization) for _ in range(2)]
    for each, has_notes in zip(pair, (True, False), strict=True):
        for channel in ("email", "telephony"):
            if has_notes:
                each.note(channel=channel)
        each.answer("1")
        if has_notes:
            each.note()
        each.say("2")
        each.by_visitor("PUT", "/read", {})
        if has_notes:
            each.note(channel="whatsapp")
        each.by_visitor("PATCH", body={"is_closed": True})
    assert shape(pair[0]) == shape(pair[1])


def shape(sides: Sides) -> Any:
    case = sides.by_visitor("GET").get_json()
    names = ("status", "is_waiting", "unread_message_count", "visitor_unread_message_count", "channel_priority",
             "latest_messaging_channel")  # fmt: skip
    activities = sides.by_visitor("GET", "/activities").get_json()["results"]
    messages = sides.by_visitor("GET", "/messages").get_json()["results"]
    places = {each["id"]: place for place, each in enumerate(activities)}
    return (
        [case[name] for name in names],
        [(each["channel"], each["message_count"], each["is_ended"]) for each in activities],
        [(places[each["activity_id"]], each["text"], each["read_at"] is None) for each in messages],
        [event["type"] for event in sides.events().get_json()["results"] if event["case_id"] == str(sides.case_id)],
    )


def test_a_note_that_was_loaded_is_hidden_in_an_activity_that_is_seen(
    client: FlaskClient, organization: Organization
) -> None:
    sides = sides_of(client, organization)
    message = sides.answer()
    before = everything(sides)
    about = {"organization_id": organization.id, "case_id": sides.case_id, "activity_id": message["activity_id"]}
    for days in (-1, 1):
        at = LONG_AGO + timedelta(days=days * 5000)
        organization.insert(
            "messages", id=message_id(), sender_type="user", text="Loaded", is_private=True, created_at=at, **about
        )
    assert everything(sides) == before
    assert len(sides.texts(sides.by_organization)) == 3

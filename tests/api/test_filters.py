"""The filters of the collection and of the summary: matching cases, refused values, and binding to cursors."""

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from tests.factories import LONG_AGO, Organization, Visitor, assert_problem, get

ORDERINGS = ("created_at", "-created_at", "updated_at", "-updated_at")
STATUSES = ("Open", "In Progress", "Pending", "Closed")
CHANNELS = ("email", "whatsapp", "webchat", None)


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    """Return a visitor with a case of each status, priority and channel, an hour apart, updated a day later."""
    visitor = organization.visitor(contacts=3)
    for n in range(40):
        organization.case(
            visitor.contact_ids[n % 3],
            LONG_AGO + timedelta(hours=n),
            updated_at=LONG_AGO + timedelta(days=1, hours=40 - n),
            status=STATUSES[n % 4],
            priority=1 + n % 5,
            latest_messaging_channel=CHANNELS[n // 4 % 4],
            unread_message_count=n,
            is_waiting=n % 2 == 0,
        )
    return visitor


def everything(client: FlaskClient, visitor: Visitor, query: str, page_size: int = 7) -> list[dict[str, Any]]:
    url: str | None = f"{visitor.path}?{query}&page_size={page_size}"
    cases: list[dict[str, Any]] = []
    while url:
        response = get(client, visitor.organization, url)
        assert response.status_code == 200, response.text
        cases += response.get_json()["results"]
        url = response.get_json()["next"]
    return cases


def hour(n: int) -> str:
    return quote((LONG_AGO + timedelta(hours=n)).isoformat())


QUERIES: list[tuple[str, Any]] = [
    ("status=Open", lambda c: c["status"] == "Open"),
    ("status=In%20Progress,Closed", lambda c: c["status"] in ("In Progress", "Closed")),
    ("status=In%20Progress&status=Closed", lambda c: c["status"] in ("In Progress", "Closed")),
    ("status=Closed,Open,Closed", lambda c: c["status"] in ("Open", "Closed")),
    ("is_closed=true", lambda c: c["is_closed"]),
    ("is_closed=false", lambda c: not c["is_closed"]),
    ("is_closed=true&status=Open", lambda c: False),
    ("is_closed=false&status=Open,Closed", lambda c: c["status"] == "Open"),
    ("priority=1", lambda c: c["priority"] == 1),
    ("priority=5,2", lambda c: c["priority"] in (2, 5)),
    ("priority=5&is_closed=false&priority=2", lambda c: c["priority"] in (2, 5) and c["status"] != "Closed"),
    ("latest_messaging_channel=email", lambda c: c["latest_messaging_channel"] == "email"),
    ("latest_messaging_channel=null", lambda c: c["latest_messaging_channel"] is None),
    ("latest_messaging_channel=null,webchat", lambda c: c["latest_messaging_channel"] in (None, "webchat")),
    ("latest_messaging_channel=null&latest_messaging_channel=webchat",
     lambda c: c["latest_messaging_channel"] in (None, "webchat")),
    (f"created_since={hour(20)}", lambda c: c["n"] >= 20),
    (f"created_until={hour(20)}", lambda c: c["n"] < 20),
    (f"created_since={hour(5)}&created_until={hour(9)}", lambda c: 5 <= c["n"] < 9),
    (f"created_since={hour(9)}&created_until={hour(5)}", lambda c: False),
    (f"updated_since={hour(44)}", lambda c: 64 - c["n"] >= 44),
    (f"updated_until={hour(44)}", lambda c: 64 - c["n"] < 44),
    (f"status=Open&priority=1,3&created_since={hour(3)}&updated_since={hour(30)}",
     lambda c: c["status"] == "Open" and c["priority"] in (1, 3) and c["n"] >= 3 and 64 - c["n"] >= 30),
]  # fmt: skip


def number(case: dict[str, Any]) -> int:
    """Return how many hours after the first a case was created."""
    delta = datetime.fromisoformat(case["created_at"]) - LONG_AGO.replace(microsecond=879000)
    return round(delta.total_seconds() / 3600)


@pytest.mark.parametrize(("query", "passes"), QUERIES)
def test_a_filter_lets_exactly_its_cases_pass_in_every_ordering(
    client: FlaskClient, visitor: Visitor, query: str, passes: Any
) -> None:
    every = {case["id"]: case | {"n": number(case)} for case in everything(client, visitor, "")}
    assert len(every) == 40
    for ordering in ORDERINGS:
        column, reverse = ordering.removeprefix("-"), ordering.startswith("-")
        expected = sorted(filter(passes, every.values()), key=lambda c: (c[column], c["id"]), reverse=reverse)
        found = everything(client, visitor, f"{query}&ordering={ordering}", page_size=3)
        assert [case["id"] for case in found] == [case["id"] for case in expected]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_filtered_walk_leads_back(client: FlaskClient, visitor: Visitor, ordering: str) -> None:
    query = f"ordering={ordering}&page_size=4&is_closed=false&created_since={hour(2)}&created_until={hour(38)}"
    pages = [get(client, visitor.organization, f"{visitor.path}?{query}").get_json()]
    while pages[-1]["next"]:
        pages.append(get(client, visitor.organization, pages[-1]["next"]).get_json())
    assert pages[0]["previous"] is None
    assert len(pages) > 3
    for index in range(len(pages) - 1, 0, -1):
        back = get(client, visitor.organization, pages[index]["previous"]).get_json()
        assert back["results"] == pages[index - 1]["results"]
        assert (back["previous"] is None) == (index == 1)


@pytest.mark.parametrize(
    "since",
    ["2015-08-31T16:32:17.879123Z", "2015-08-31t16:32:17.879123z", "2015-08-31T18:32:17.879123%2B02:00",
     "2015-08-31T18:32:17.879123+02:00", "2015-08-31T18:32:17.879123+0200", "2015-08-31%2018:32:17.879123 02:00",
     "2015-08-31T14:32:17.879123-02", "2015-08-31T16:32:17.879123000Z", "2015-08-31T16:32:17.879122001Z",
     "2015-08-31T16:32:17.8791221Z"],
)  # fmt: skip
def test_since_is_inclusive_and_until_exclusive_to_the_microsecond(
    client: FlaskClient, organization: Organization, since: str
) -> None:
    visitor = organization.visitor()
    before, at = (organization.case(visitor.contact_ids[0], LONG_AGO + timedelta(microseconds=n)) for n in (-1, 0))

    def ids(query: str) -> list[UUID]:
        return [UUID(case["id"]) for case in everything(client, visitor, query)]

    for ordering in ("created_at", "-created_at"):
        assert ids(f"created_since={since}&ordering={ordering}") == [at]
        assert ids(f"created_until={since}&ordering={ordering}") == [before]
        assert ids(f"updated_since={since}&ordering={ordering}") == [at]


def test_limits_beyond_all_years_let_everything_or_nothing_pass(client: FlaskClient, visitor: Visitor) -> None:
    low, high = "0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59.999999-12:00"
    assert everything(client, visitor, "created_since=9999-12-31T23:59:59.9999999Z") == []
    for ordering in ORDERINGS:
        assert len(everything(client, visitor, f"created_since={low}&created_until={high}&ordering={ordering}")) == 40
        assert everything(client, visitor, f"updated_since={high}&ordering={ordering}") == []
        assert everything(client, visitor, f"updated_until={low}&ordering={ordering}") == []


@pytest.mark.parametrize(
    "query",
    ["status=", "status=open", "status=Open,", "status=Open, Closed", "status=Open&status=open",
     "status=&status=Open", "status=Open&status=", "is_closed=1", "is_closed=true&is_closed=true",
     "created_since=2020-01-01T00:00:00Z&created_since=2020-01-01T00:00:00Z", "format=json&format=json",
     "is_closed=True", "is_closed=", "priority=0", "priority=6", "priority=1.0", "priority=", "priority=%2B1",
     "latest_messaging_channel=sms", "latest_messaging_channel=None", "latest_messaging_channel=",
     "created_since=2020-01-01", "created_since=2020-01-01T00:00:00", "created_since=2020-01-01 10:00",
     "created_since=1577836800", "created_since=2020-13-01T00:00:00Z", "created_since=2020-01-01T25:00:00Z",
     "created_since=2020-W01-1T00:00:00Z", "created_until=infinity", "updated_since=now", "updated_until=",
     "updated_until=2020-01-01T00:00:00%2B99:00", "created_since=2020-01-01T00:00:00%2B00:60",
     "updated_since=%D9%A22020-01-01T00:00:00Z",
     "fields=", "fields=id,", "fields=ID", "fields=owner.email", "fields=id&fields=ID", "fields=*"],
)  # fmt: skip
def test_a_wrong_filter_is_named(client: FlaskClient, organization: Organization, query: str) -> None:
    response = get(client, organization, f"{organization.visitor().path}?{query}")
    (error,) = assert_problem(response, 400, "invalid_parameter")["errors"]
    assert error["parameter"] == query.partition("=")[0]


def test_links_keep_the_filters(client: FlaskClient, visitor: Visitor) -> None:
    query = f"status=In%20Progress,Open&page_size=2&created_since={hour(1)}&fields=id,status"
    document = get(client, visitor.organization, f"{visitor.path}?{query}").get_json()
    kept = parse_qs(urlsplit(document["next"]).query)
    assert kept["status"] == ["In Progress,Open"]
    assert kept["fields"] == ["id,status"]
    assert "created_since" in kept


def test_links_repeat_what_the_caller_repeated(client: FlaskClient, visitor: Visitor) -> None:
    query = "status=In%20Progress&fields=id&status=Open&page_size=2&fields=status"
    document = get(client, visitor.organization, f"{visitor.path}?{query}").get_json()
    assert [list(case) for case in document["results"]] == [["id", "status"]] * 2
    kept = parse_qs(urlsplit(document["next"]).query)
    assert kept["status"] == ["In Progress", "Open"]
    assert kept["fields"] == ["id", "status"]
    assert get(client, visitor.organization, document["next"]).status_code == 200


def test_a_list_is_the_same_to_a_cursor_with_commas_and_repeated(client: FlaskClient, visitor: Visitor) -> None:
    document = get(client, visitor.organization, f"{visitor.path}?priority=1,2&page_size=2").get_json()
    repeated = document["next"].replace("priority=1%2C2", "priority=2&priority=1")
    with_commas = get(client, visitor.organization, document["next"]).get_json()
    assert get(client, visitor.organization, repeated).get_json()["results"] == with_commas["results"]


@pytest.mark.parametrize("other", ["", "status=Open", "is_closed=true", f"is_closed=false&created_since={hour(0)}"])
def test_a_cursor_is_bound_to_its_filters(client: FlaskClient, visitor: Visitor, other: str) -> None:
    document = get(client, visitor.organization, f"{visitor.path}?is_closed=false&page_size=2").get_json()
    cursor = parse_qs(urlsplit(document["next"]).query)["cursor"][0]
    response = get(client, visitor.organization, f"{visitor.path}?{other}&cursor={cursor}".replace("?&", "?"))
    assert_problem(response, 400, "invalid_cursor")


def test_a_cursor_is_not_bound_to_fields(client: FlaskClient, visitor: Visitor) -> None:
    document = get(client, visitor.organization, f"{visitor.path}?fields=id&page_size=2").get_json()
    following = document["next"].replace("fields=id", "fields=id,status")
    assert set(get(client, visitor.organization, following).get_json()["results"][0]) == {"id", "status"}


def test_the_order_of_a_list_does_not_matter_to_a_cursor(client: FlaskClient, visitor: Visitor) -> None:
    document = get(client, visitor.organization, f"{visitor.path}?priority=1,2&page_size=2").get_json()
    swapped = document["next"].replace("priority=1%2C2", "priority=2%2C1")
    assert swapped != document["next"]
    assert get(client, visitor.organization, swapped).status_code == 200


def test_fields_are_answered_in_the_documented_order(client: FlaskClient, visitor: Visitor) -> None:
    (case, *_) = everything(client, visitor, "fields=updated_at,owner,id,priority_label,contact")
    assert list(case) == ["id", "contact", "owner", "priority_label", "updated_at"]
    assert case["contact"]["id"]
    detail = get(client, visitor.organization, f"{visitor.path}/{case['id']}?fields=status,case_number").get_json()
    assert list(detail) == ["case_number", "status"]


def test_each_field_alone_is_what_the_whole_case_has(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    user = organization.user_id
    case_id = organization.case(visitor.contact_ids[0], owner_id=user, created_by_user_id=user, updated_by_user_id=user)
    whole = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    for name, value in whole.items():
        assert get(client, organization, f"{visitor.path}/{case_id}?fields={name}").get_json() == {name: value}
        assert everything(client, visitor, f"fields={name}") == [{name: value}]


def test_the_summary_counts_the_visitors_cases(client: FlaskClient, visitor: Visitor) -> None:
    visitor.organization.visitor().cases(3)
    document = get(client, visitor.organization, f"{visitor.path}/summary").get_json()
    assert document == {
        "total": 40,
        "by_status": {"Open": 10, "In Progress": 10, "Pending": 10, "Closed": 10},
        "unread_message_count": sum(range(40)),
        "waiting_count": 20,
        "latest_updated_at": "2015-09-03T08:32:17.879Z",
        "visitor_unread_message_count": 0,
    }


def test_the_summary_of_nothing_is_zeros(client: FlaskClient, organization: Organization) -> None:
    for contacts in (0, 1):
        visitor = organization.visitor(contacts=contacts)
        assert get(client, organization, f"{visitor.path}/summary").get_json() == {
            "total": 0,
            "by_status": {"Open": 0, "In Progress": 0, "Pending": 0, "Closed": 0},
            "unread_message_count": 0,
            "waiting_count": 0,
            "latest_updated_at": None,
            "visitor_unread_message_count": 0,
        }


@pytest.mark.parametrize(("query", "passes"), QUERIES)
def test_the_summary_takes_the_same_filters(client: FlaskClient, visitor: Visitor, query: str, passes: Any) -> None:
    passing = [c for c in (case | {"n": number(case)} for case in everything(client, visitor, "")) if passes(c)]
    document = get(client, visitor.organization, f"{visitor.path}/summary?{query}").get_json()
    assert document["total"] == len(passing) == sum(document["by_status"].values())
    assert document["unread_message_count"] == sum(case["unread_message_count"] for case in passing)


@pytest.mark.parametrize("query", ["fields=id", "page_size=5", "ordering=created_at", "cursor=x", "status=x"])
def test_the_summary_takes_nothing_else(client: FlaskClient, organization: Organization, query: str) -> None:
    response = get(client, organization, f"{organization.visitor().path}/summary?{query}")
    assert_problem(response, 400, "invalid_parameter")


def test_the_summary_of_an_unknown_visitor_is_not_found(client: FlaskClient, organization: Organization) -> None:
    path = f"/api/v5/orgs/{organization.id}/external-visitors/{organization.jwt('nobody')}/cases/summary"
    assert_problem(get(client, organization, path), 404, "visitor_not_found")

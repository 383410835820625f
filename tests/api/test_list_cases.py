"""GET .../cases: the page, its links and its order."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient

from cases_service.cases.pagination import Collection, Cursor, Position, visitor_tag
from cases_service.cases.timestamps import FIRST, LAST
from tests.factories import LONG_AGO, Organization, Visitor, assert_problem, get

ORDERINGS = ("created_at", "-created_at", "updated_at", "-updated_at")


def page(client: FlaskClient, visitor: Visitor, url: str | None = None) -> dict[str, Any]:
    response = get(client, visitor.organization, url or visitor.path)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.get_json()
    return document


def ids(document: dict[str, Any]) -> list[UUID]:
    return [UUID(case["id"]) for case in document["results"]]


def walk(client: FlaskClient, visitor: Visitor, query: str, link: str = "next") -> list[dict[str, Any]]:
    url: str | None = f"{visitor.path}?{query}"
    pages = []
    while url:
        pages.append(page(client, visitor, url))
        url = pages[-1][link]
    return pages


def test_a_page_is_next_previous_and_results(client: FlaskClient, organization: Organization) -> None:
    document = page(client, organization.visitor())
    assert document == {"next": None, "previous": None, "results": []}


def test_the_cases_of_all_contacts_come_in_one_order(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor(contacts=3)
    expected = visitor.cases(7)
    assert ids(page(client, visitor)) == expected


def test_a_visitor_without_contacts_has_no_cases(client: FlaskClient, organization: Organization) -> None:
    assert ids(page(client, organization.visitor(contacts=0))) == []


def test_another_visitors_cases_are_not_shown(client: FlaskClient, organization: Organization) -> None:
    organization.visitor().cases(2)
    visitor = organization.visitor()
    mine = visitor.cases(1)
    assert ids(page(client, visitor)) == mine


def test_cases_of_contacts_without_a_visitor_are_not_shown(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    organization.case(visitor.contact(visitor_id=None))
    organization.case(None)
    assert ids(page(client, visitor)) == []


def test_a_contact_that_moves_takes_its_cases_along(client: FlaskClient, organization: Organization) -> None:
    before, after = organization.visitor(), organization.visitor()
    cases = before.cases(2)
    organization.update("contacts", "id", before.contact_ids[0], visitor_id=after.id)
    assert ids(page(client, before)) == []
    assert ids(page(client, after)) == cases


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_ties_are_broken_by_id_in_the_direction_of_the_ordering(
    client: FlaskClient, organization: Organization, ordering: str
) -> None:
    visitor = organization.visitor(contacts=4)
    cases = visitor.cases(11, step=timedelta(0))
    pages = walk(client, visitor, f"ordering={ordering}&page_size=3")
    seen = [case_id for document in pages for case_id in ids(document)]
    assert seen == sorted(cases, reverse=ordering.startswith("-"))


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_previous_gives_the_same_pages_back(client: FlaskClient, organization: Organization, ordering: str) -> None:
    visitor = organization.visitor(contacts=3)
    visitor.cases(10)
    pages = walk(client, visitor, f"ordering={ordering}&page_size=4")
    back = [pages[-1]]
    while back[-1]["previous"]:
        back.append(page(client, visitor, back[-1]["previous"]))
    assert [document["results"] for document in reversed(back)] == [d["results"] for d in pages]
    assert [len(document["results"]) for document in pages] == [4, 4, 2]


def test_updated_at_orders_by_the_last_update(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    contact = visitor.contact_ids[0]
    older = organization.case(contact, LONG_AGO, updated_at=LONG_AGO + timedelta(days=2))
    newer = organization.case(contact, LONG_AGO + timedelta(days=1))
    assert ids(page(client, visitor, f"{visitor.path}?ordering=updated_at")) == [newer, older]
    assert ids(page(client, visitor, f"{visitor.path}?ordering=-updated_at")) == [older, newer]


def test_microseconds_order_cases_that_look_alike(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor(contacts=2)
    cases = visitor.cases(6, step=timedelta(microseconds=1))
    pages = walk(client, visitor, "page_size=1")
    assert [ids(document)[0] for document in pages] == cases
    assert len({document["results"][0]["created_at"] for document in pages}) == 1


def test_a_page_has_25_cases_by_default_and_100_at_most(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor(contacts=2)
    cases = visitor.cases(101)
    assert ids(page(client, visitor)) == cases[:25]
    assert ids(page(client, visitor, f"{visitor.path}?page_size=100")) == cases[:100]


def test_the_last_full_page_has_no_next(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(4)
    pages = walk(client, visitor, "page_size=2")
    assert [len(document["results"]) for document in pages] == [2, 2]


def test_links_keep_the_other_parameters(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(5)
    first = page(client, visitor, f"{visitor.path}?page_size=2&format=json&ordering=-created_at")
    for link in (first["next"], page(client, visitor, first["next"])["previous"]):
        query = parse_qs(urlsplit(link).query)
        assert (query["page_size"], query["format"], query["ordering"]) == (["2"], ["json"], ["-created_at"])
        assert len(query["cursor"][0]) <= 300


def test_links_are_whole_urls_on_the_callers_host(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(2)
    response = get(client, organization, f"{visitor.path}?page_size=1", Host="127.0.0.1:8000")
    assert response.get_json()["next"].startswith(f"http://127.0.0.1:8000/api/v5/orgs/{organization.id}/")


def test_a_token_in_the_header_never_appears_in_a_link(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(3)
    token = organization.jwt(visitor.external_id)
    url = f"/api/v5/orgs/{organization.id}/external-visitors/-/cases?page_size=1"
    document = get(client, organization, url, **{"X-External-Identity": token}).get_json()
    assert "/external-visitors/-/cases?" in document["next"]
    assert token not in document["next"]
    following = get(client, organization, document["next"], **{"X-External-Identity": token})
    assert "/external-visitors/-/cases?" in following.get_json()["previous"]


def test_a_cursor_outlives_the_jwt_it_was_made_with(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(2)
    first = page(client, visitor, f"{visitor.path}?page_size=1")
    cursor = parse_qs(urlsplit(first["next"]).query)["cursor"][0]
    renewed = organization.jwt(visitor.external_id, jti="another")
    path = f"/api/v5/orgs/{organization.id}/external-visitors/{renewed}/cases?page_size=1&cursor={cursor}"
    assert ids(page(client, visitor, path)) == cases[1:]


def test_the_page_size_may_change_during_a_walk(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(6)
    first = page(client, visitor, f"{visitor.path}?page_size=2")
    rest = page(client, visitor, first["next"].replace("page_size=2", "page_size=9"))
    assert ids(rest) == cases[2:]


def test_a_page_whose_cases_vanished_is_empty_and_leads_on(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(4)
    first = page(client, visitor, f"{visitor.path}?page_size=2")
    for case_id in cases[2:]:
        organization.connection.execute("delete from cases where id = %s", [case_id])
    empty = page(client, visitor, first["next"])
    assert (ids(empty), empty["next"]) == ([], None)
    assert ids(page(client, visitor, empty["previous"])) == cases[:2]


def test_an_empty_page_reached_backwards_leads_forward(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(4)
    second = page(client, visitor, page(client, visitor, f"{visitor.path}?page_size=2")["next"])
    for case_id in cases[:2]:
        organization.connection.execute("delete from cases where id = %s", [case_id])
    empty = page(client, visitor, second["previous"])
    assert (ids(empty), empty["previous"]) == ([], None)
    assert ids(page(client, visitor, empty["next"])) == cases[2:]


def test_all_links_are_null_once_the_last_case_is_gone(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(3)
    first = page(client, visitor, f"{visitor.path}?page_size=2")
    organization.connection.execute("delete from cases where organization_id = %s", [organization.id])
    assert page(client, visitor, first["next"]) == {"next": None, "previous": None, "results": []}


def test_previous_appears_when_an_earlier_case_arrives(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(4)
    pages = walk(client, visitor, "page_size=2")
    back = page(client, visitor, pages[1]["previous"])
    assert back["previous"] is None
    early = organization.case(visitor.contact_ids[0], LONG_AGO - timedelta(days=1))
    back = page(client, visitor, pages[1]["previous"])
    assert ids(page(client, visitor, back["previous"])) == [early]


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=101",
        "page_size=-1",
        "page_size=1.0",
        "page_size=%2B5",
        "page_size=%205",
        "page_size=1_0",
        "page_size=%D9%A3",
        "page_size=99999999999999999999",
        "page_size=",
        "page_size",
        "page_size=5&page_size=5",
        "ordering=",
        "ordering=created_at,id",
        "ordering=case_number",
        "ordering=--created_at",
        "ordering=CREATED_AT",
        "ordering=created_at%00",
        "cursor=",
        "cursor=a&cursor=a",
        "format=xml",
        "format=",
        "limit=5",
        "page_size%5B%5D=5",
        "=5",
        "%FF=%FE",
    ],
)
def test_a_wrong_parameter_is_named(client: FlaskClient, organization: Organization, query: str) -> None:
    response = get(client, organization, f"{organization.visitor().path}?{query}")
    document = assert_problem(response, 400, "invalid_parameter")
    assert [set(error) for error in document["errors"]] == [{"parameter", "detail"}]


@pytest.mark.parametrize("query", ["page_size=5\xff", "\xff=1", "a\x80\xfe"])
def test_raw_bytes_that_are_no_text_are_a_wrong_parameter(
    client: FlaskClient, organization: Organization, query: str
) -> None:
    # As a server hands them on: the bytes of the request line, one character each.
    response = client.get(
        organization.visitor().path, headers=organization.headers(), environ_overrides={"QUERY_STRING": query}
    )
    assert_problem(response, 400, "invalid_parameter")


def test_each_wrong_parameter_is_named(client: FlaskClient, organization: Organization) -> None:
    response = get(client, organization, f"{organization.visitor().path}?page_size=x&ordering=y&z=1")
    document = assert_problem(response, 400, "invalid_parameter")
    assert {error["parameter"] for error in document["errors"]} == {"page_size", "ordering", "z"}


def test_of_very_many_wrong_parameters_the_first_are_named(client: FlaskClient, organization: Organization) -> None:
    unknown = [f"z{number}" for number in range(60)]
    query = "&".join(f"{name}=1" for name in unknown)
    response = get(client, organization, f"{organization.visitor().path}?{query}&page_size=0")
    document = assert_problem(response, 400, "invalid_parameter")
    assert [error["parameter"] for error in document["errors"]] == ["page_size", *unknown[:31]]


def test_format_json_is_accepted(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    assert page(client, visitor, f"{visitor.path}?format=json")["results"] == []


def cursor_of(client: FlaskClient, visitor: Visitor, query: str = "page_size=1") -> str:
    document = page(client, visitor, f"{visitor.path}?{query}")
    return str(parse_qs(urlsplit(document["next"]).query)["cursor"][0])


@pytest.mark.parametrize("cursor", ["x", "a" * 56, "a" * 300, "a" * 5000, "%00", "%F0%9F%98%80", "..", "=" * 56])
def test_garbage_is_no_cursor(client: FlaskClient, organization: Organization, cursor: str) -> None:
    response = get(client, organization, f"{organization.visitor().path}?cursor={cursor}")
    assert_problem(response, 400, "invalid_cursor")


def test_every_changed_character_spoils_a_cursor(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    visitor.cases(2)
    cursor = cursor_of(client, visitor)
    path = visitor.path
    for index, character in enumerate(cursor):
        changed = cursor[:index] + ("A" if character != "A" else "B") + cursor[index + 1 :]
        assert_problem(get(client, organization, f"{path}?cursor={changed}"), 400, "invalid_cursor")


@pytest.mark.parametrize("ordering", ORDERINGS[1:])
def test_a_cursor_of_another_ordering_is_refused(
    client: FlaskClient, organization: Organization, ordering: str
) -> None:
    visitor = organization.visitor()
    visitor.cases(2)
    cursor = cursor_of(client, visitor)
    response = get(client, organization, f"{visitor.path}?ordering={ordering}&cursor={cursor}")
    assert_problem(response, 400, "invalid_cursor")


def test_a_cursor_of_another_visitor_is_refused(client: FlaskClient, organization: Organization) -> None:
    visitor, other = organization.visitor(), organization.visitor()
    visitor.cases(2)
    other.cases(2)
    response = get(client, organization, f"{other.path}?cursor={cursor_of(client, visitor)}")
    assert_problem(response, 400, "invalid_cursor")


def test_a_cursor_of_another_organization_is_refused(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor("same")
    visitor.cases(2)
    other = Organization(organization.connection, organization.box)
    response = get(client, other, f"{other.visitor('same').path}?cursor={cursor_of(client, visitor)}")
    assert_problem(response, 400, "invalid_cursor")


def test_an_unknown_visitor_is_not_found(client: FlaskClient, organization: Organization) -> None:
    path = organization.visitor().path.replace("cases", "cases")
    unknown = f"/api/v5/orgs/{organization.id}/external-visitors/{organization.jwt('nobody')}/cases"
    assert_problem(get(client, organization, unknown), 404, "visitor_not_found")
    assert get(client, organization, path).status_code == 200


def test_another_organizations_visitor_is_not_found(client: FlaskClient, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    other.visitor("theirs").cases(1)
    path = f"/api/v5/orgs/{organization.id}/external-visitors/{organization.jwt('theirs')}/cases"
    assert_problem(get(client, organization, path), 404, "visitor_not_found")


@pytest.mark.parametrize(
    "external_id", ["Zoë", "zoe", "a b", "%", "🙂", "x" * 256, "'; drop table cases;--", "e\u0301"]
)
def test_an_external_id_is_any_text(client: FlaskClient, organization: Organization, external_id: str) -> None:
    visitor = organization.visitor(external_id)
    cases = visitor.cases(1)
    assert ids(page(client, visitor)) == cases


def test_external_ids_are_compared_by_their_bytes(client: FlaskClient, organization: Organization) -> None:
    organization.visitor("\u00e9")
    for lookalike in ("e\u0301", "\u00c9", "\u00e9 "):
        path = f"/api/v5/orgs/{organization.id}/external-visitors/{organization.jwt(lookalike)}/cases"
        assert_problem(get(client, organization, path), 404, "visitor_not_found")


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "9999-12-31T23:59:59.999Z"),
        (datetime(2020, 2, 29, 12, 0, 0, 999, tzinfo=UTC), "2020-02-29T12:00:00.000Z"),
        (datetime(2020, 2, 29, 12, 0, 0, 120000, tzinfo=UTC), "2020-02-29T12:00:00.120Z"),
        (datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "1969-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_truncated_to_milliseconds_and_walked_in_full(
    client: FlaskClient, organization: Organization, moment: datetime, shown: str
) -> None:
    visitor = organization.visitor()
    contact = visitor.contact_ids[0]
    cases = sorted(organization.case(contact, moment) for _ in range(3))
    for ordering in ("created_at", "-created_at"):
        pages = walk(client, visitor, f"page_size=1&ordering={ordering}")
        assert [ids(document)[0] for document in pages] == (cases if ordering[0] != "-" else cases[::-1])
        assert {document["results"][0]["created_at"] for document in pages} == {shown}


def test_extreme_ids_are_walked(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor(contacts=2)
    cases = [UUID(int=0), uuid4(), UUID(int=2**128 - 1)]
    for index, case_id in enumerate(cases):
        organization.case(visitor.contact_ids[index % 2], id=case_id)
    for ordering in ("updated_at", "-updated_at"):
        pages = walk(client, visitor, f"page_size=1&ordering={ordering}")
        assert [ids(d)[0] for d in pages] == (cases if ordering[0] != "-" else cases[::-1])
        for document in pages[1:]:
            assert page(client, visitor, document["previous"])["results"]


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("moment", [FIRST - 1, FIRST, LAST, LAST + 1])
@pytest.mark.parametrize("edge", [UUID(int=0), UUID(int=2**128 - 1)])
def test_the_links_of_a_page_at_the_end_of_time_are_taken(
    client: FlaskClient, organization: Organization, ordering: str, backward: bool, moment: int, edge: UUID
) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(3)
    cursor = Cursor(Position(moment, edge), backward, visitor_tag(visitor.id))
    text = cursor.encode(Collection(organization.id, ordering))
    document = page(client, visitor, f"{visitor.path}?ordering={ordering}&cursor={text}")
    links = [link for link in (document["next"], document["previous"]) if link]
    assert len(links) == (not document["results"])
    for link in links:
        assert sorted(ids(page(client, visitor, link))) == sorted(cases)


def test_the_largest_page_is_less_than_fifty_megabytes(client: FlaskClient, organization: Organization) -> None:
    """A hundred descriptions of 65,536 characters of which each takes six bytes in JSON."""
    visitor = organization.visitor()
    organization.connection.execute(
        """
        insert into cases (organization_id, id, case_number, contact_id, status, priority, subject, description,
            created_at, updated_at)
        select %s, gen_random_uuid(), n, %s, 'Open', 1, repeat(chr(1), 1000), repeat(chr(1), 65536), now(), now()
        from generate_series(1, 100) n
        """,
        [organization.id, visitor.contact_ids[0]],
    )
    response = get(client, organization, f"{visitor.path}?page_size=100")
    assert response.status_code == 200
    assert 39_000_000 < len(response.data) < 50_000_000

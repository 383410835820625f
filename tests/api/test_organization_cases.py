"""All cases of an organization, page by page: none is left out, whatever its contact."""

from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient

from tests.factories import LONG_AGO, Organization, assert_problem, get
from tests.writing import Writer

ORDERINGS = ("created_at", "-created_at", "updated_at", "-updated_at")


@pytest.fixture
def reader(client: FlaskClient, organization: Organization) -> Writer:
    return Writer(client, organization, "cases:read")


@pytest.fixture
def case_ids(organization: Organization) -> list[UUID]:
    """Seventeen cases with ties in both times, of two visitors, a contact without one, and no contact at all."""
    contacts = [*organization.visitor(contacts=2).contact_ids, *organization.visitor().contact_ids]
    stray = uuid4()
    organization.insert("contacts", organization_id=organization.id, id=stray, created_at=LONG_AGO, updated_at=LONG_AGO)
    places = [*contacts, stray, None]
    return [
        organization.case(
            places[number % len(places)],
            LONG_AGO + timedelta(seconds=number // 3),
            updated_at=LONG_AGO + timedelta(days=1, seconds=number % 4),
            priority=number % 5 + 1,
        )
        for number in range(17)
    ]


def ask(reader: Writer, query: str = "", **headers: str) -> Any:
    return reader.client.get(
        f"{reader.organization.cases_path}?{query}",
        headers={"Authorization": f"Token {reader.token}", **headers},
    )


def walk(reader: Writer, query: str, link: str = "next") -> Iterator[dict[str, Any]]:
    """Yield the pages from the one that a query asks for, by a link."""
    page = ask(reader, query).get_json()
    while True:
        yield page
        if page[link] is None:
            return
        page = reader.client.get(page[link], headers={"Authorization": f"Token {reader.token}"}).get_json()


def found(reader: Writer, query: str) -> set[str]:
    return {case["id"] for page in walk(reader, f"{query}&page_size=5") for case in page["results"]}


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_walk_shows_every_case_once_and_back_again(reader: Writer, case_ids: list[UUID], ordering: str) -> None:
    pages = list(walk(reader, f"ordering={ordering}&page_size=4"))
    shown = [case for page in pages for case in page["results"]]
    column, is_descending = ordering.removeprefix("-"), ordering.startswith("-")
    rows = reader.organization.connection.execute(
        f"select id::text from cases where organization_id = %s order by {column}, id", [reader.organization.id]
    ).fetchall()
    expected = [case_id for (case_id,) in rows]
    assert [case["id"] for case in shown] == (expected[::-1] if is_descending else expected)
    assert len(shown) == len(case_ids)
    assert (pages[0]["previous"], pages[-1]["next"]) == (None, None)
    last = pages[-2]["next"].partition("?")[2]
    back = [page["results"] for page in walk(reader, last, "previous")]
    assert back == [page["results"] for page in pages[::-1]]


def test_a_case_is_shown_whole_and_as_by_itself(reader: Writer, case_ids: list[UUID]) -> None:
    for case in ask(reader).get_json()["results"]:
        assert reader.get(case["id"]).get_json() == case


def test_a_case_without_a_contact_is_there(reader: Writer) -> None:
    case_id = reader.organization.case(None)
    (case,) = ask(reader).get_json()["results"]
    assert (case["id"], case["contact_id"], case["contact"]) == (str(case_id), None, None)


def test_an_organization_without_cases_has_an_empty_page(reader: Writer) -> None:
    assert ask(reader).get_json() == {"next": None, "previous": None, "results": []}


def test_a_page_whose_cases_have_vanished_leads_back(reader: Writer, case_ids: list[UUID]) -> None:
    second = ask(reader, "page_size=12").get_json()["next"].partition("?")[2]
    gone = [case["id"] for case in ask(reader, second).get_json()["results"]]
    reader.organization.connection.execute("delete from cases where id = any(%s)", [gone])
    page = ask(reader, second).get_json()
    assert (page["results"], page["next"]) == ([], None)
    back = reader.client.get(page["previous"], headers={"Authorization": f"Token {reader.token}"}).get_json()
    assert len(back["results"]) == 12


class TestFilters:
    def test_contacts_and_owners_and_none_of_them(self, reader: Writer) -> None:
        organization = reader.organization
        one, two = organization.visitor(contacts=2).contact_ids
        owner, another = organization.user(), organization.user()
        ids = {
            name: str(organization.case(contact, owner_id=who))
            for name, contact, who in (
                ("a", one, owner), ("b", one, None), ("c", two, another), ("d", None, owner), ("e", None, None),
            )
        }  # fmt: skip
        expected = {
            f"contact_id={one}": "ab",
            f"contact_id={str(one).upper()},{two}": "abc",
            f"contact_id={one}&contact_id=null": "abde",
            "contact_id=null": "de",
            f"owner_id={owner}": "ad",
            f"owner_id=null,{another}": "bce",
            f"owner_id={owner}&contact_id={one},{two}": "a",
            f"contact_id={uuid4()}": "",
            "contact_id=null&owner_id=null": "e",
        }
        for query, names in expected.items():
            assert found(reader, query) == {ids[name] for name in names}, query

    def test_a_number_and_a_visitor(self, reader: Writer, case_ids: list[UUID]) -> None:
        organization = reader.organization
        visitor = organization.visitor("käufer 1", contacts=2)
        ids = {str(case_id) for case_id in visitor.cases(7)}
        number = "N 1/ü"
        numbered = str(organization.case(visitor.contact_ids[0], case_number=number))
        assert found(reader, "external_id=k%C3%A4ufer+1") == ids | {numbered}
        for query in ("case_number=N+1%2F%C3%BC", "case_number=N+1%2F%C3%BC&external_id=k%C3%A4ufer+1"):
            assert found(reader, query) == {numbered}
        for query in ("case_number=N+1", "external_id=nobody", "case_number=N+1%2F%C3%BC&external_id=nobody"):
            assert found(reader, query) == set()
        assert found(reader, f"external_id=k%C3%A4ufer+1&contact_id={visitor.contact_ids[1]}") < ids

    @pytest.mark.parametrize("source", ["", "external_id=me&", "contact_id={}&"])
    @pytest.mark.parametrize("ordering", ORDERINGS)
    def test_they_combine_with_those_of_a_visitor(self, reader: Writer, ordering: str, source: str) -> None:
        visitor = reader.organization.visitor("me")
        for number in range(24):
            reader.organization.case(
                visitor.contact_ids[0],
                LONG_AGO + timedelta(hours=number),
                status=("Open", "Closed", "Pending")[number % 3],
                priority=number % 4 + 1,
                latest_messaging_channel=("email", None)[number % 2],
                updated_at=LONG_AGO + timedelta(days=2, hours=-number),
            )
        since = (LONG_AGO + timedelta(hours=4)).astimezone(UTC).isoformat().replace("+00:00", "Z")
        until = (LONG_AGO + timedelta(days=2, hours=-5)).astimezone(UTC).isoformat().replace("+00:00", "Z")
        query = (
            f"{source.format(visitor.contact_ids[0])}ordering={ordering}&status=Open,Closed&priority=1,2,3"
            f"&latest_messaging_channel=null&created_since={since}&updated_until={until}&page_size=2"
        )
        own = [case["case_number"] for page in walk(reader, query) for case in page["results"]]
        theirs = get(
            reader.client,
            reader.organization,
            f"{visitor.path}?{query.removeprefix(source.format(visitor.contact_ids[0]))}".replace("size=2", "size=100"),
        )
        assert own == [case["case_number"] for case in theirs.get_json()["results"]]
        assert len(own) > 2

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("contact_id", ""), ("contact_id", "x"), ("contact_id", "null,x"), ("owner_id", f"{UUID(int=0)},"),
            ("owner_id", ",".join([str(UUID(int=0))] * 101)), ("owner_id", UUID(int=0).hex), ("case_number", ""),
            ("case_number", "x" * 257), ("case_number", "%00"), ("external_id", ""), ("external_id", "x" * 257),
            ("page_size", "0"), ("cursor", ""), ("unknown", "1"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, reader: Writer, name: str, value: str) -> None:
        problem = assert_problem(ask(reader, f"{name}={value}"), 400, "invalid_parameter")
        assert [error["parameter"] for error in problem["errors"]] == [name]


class TestCursors:
    def test_they_fit_their_organization_ordering_and_filters(self, reader: Writer, case_ids: list[UUID]) -> None:
        cursor = ask(reader, "page_size=2").get_json()["next"].rpartition("cursor=")[2]
        assert ask(reader, f"cursor={cursor}&fields=id").status_code == 200
        for query in ("ordering=-created_at", "status=Open", "owner_id=null", "case_number=x", "external_id=x"):
            assert_problem(ask(reader, f"{query}&cursor={cursor}"), 400, "invalid_cursor")
        other = Organization(reader.organization.connection, reader.organization.box)
        assert_problem(ask(Writer(reader.client, other, "cases:read"), f"cursor={cursor}"), 400, "invalid_cursor")

    def test_they_are_of_another_kind_than_a_visitors(self, reader: Writer) -> None:
        visitor = reader.organization.visitor()
        visitor.cases(4)
        theirs = get(reader.client, reader.organization, f"{visitor.path}?page_size=2").get_json()["next"]
        own = ask(reader, "page_size=2").get_json()["next"]
        assert_problem(ask(reader, theirs.partition("?")[2]), 400, "invalid_cursor")
        crossed = get(reader.client, reader.organization, f"{visitor.path}?{own.partition('?')[2]}")
        assert_problem(crossed, 400, "invalid_cursor")


class TestAnswers:
    def test_fields_choose_what_is_shown(self, reader: Writer, case_ids: list[UUID]) -> None:
        whole = ask(reader).get_json()["results"]
        for names in (("id",), ("owner", "contact"), ("created_by_user", "updated_by_user", "case_funnel_stage")):
            some = ask(reader, f"fields={','.join(names)}").get_json()["results"]
            assert some == [{name: case[name] for name in case if name in names} for case in whole]

    def test_a_page_that_is_known_is_not_sent_again(self, reader: Writer, case_ids: list[UUID]) -> None:
        first = ask(reader, "page_size=3")
        tag = first.headers["ETag"]
        assert tag.startswith('W/"')
        again = ask(reader, "page_size=3", **{"If-None-Match": tag})
        assert (again.status_code, again.data) == (304, b"")
        changed = first.get_json()["results"][0]["id"]
        reader.organization.update("cases", "id", UUID(changed), subject="new")
        assert ask(reader, "page_size=3", **{"If-None-Match": tag}).status_code == 200

    def test_what_was_written_is_there_in_the_next_request(self, reader: Writer) -> None:
        made = Writer(reader.client, reader.organization).create()
        assert ask(reader, f"case_number={made['case_number']}").get_json()["results"] == [made]

    def test_it_needs_a_scope(self, client: FlaskClient, organization: Organization) -> None:
        answer = ask(Writer(client, organization, "visitors:read"), "page_size=0")
        assert "cases:read" in assert_problem(answer, 403, "scope_missing")["detail"]
        assert ask(Writer(client, organization, "cases:write")).status_code == 200

    def test_another_organizations_cases_are_not_shown(self, reader: Writer) -> None:
        other = Organization(reader.organization.connection, reader.organization.box)
        contact_id = other.visitor("theirs").contact_ids[0]
        other.case(contact_id, case_number="theirs", owner_id=other.user_id)
        queries = (
            "",
            f"contact_id={contact_id}",
            f"owner_id={other.user_id}",
            "case_number=theirs",
            "external_id=theirs",
        )
        for query in queries:
            assert ask(reader, query).get_json()["results"] == []

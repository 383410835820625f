"""What has been removed does not come back by a delivery that comes late."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from cases_service.credentials import administration
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from cases_service.store import events
from tests.factories import Organization
from tests.loading.test_imports import at, load_with
from tests.loading.test_loading import Company, Fields, company, removal

__all__ = ["company"]

MODES = ("all", "each")
MAKERS: list[Callable[..., Fields]] = [Company.case, Company.contact]
TABLE = {"case": "cases", "contact": "contacts"}


@pytest.fixture
def known(company: Company) -> Company:
    company.load(company.organization())
    return company


@pytest.fixture(params=MODES)
def options(request: pytest.FixtureRequest) -> LoadOptions:
    return LoadOptions(mode=request.param, if_newer=True)


@pytest.fixture(params=MAKERS, ids=["case", "contact"])
def line(request: pytest.FixtureRequest, known: Company) -> Fields:
    made: Fields = request.param(known, updated_at=at(10))
    return made


def removed(line: Fields, second: int) -> Fields:
    return {**removal(line), "updated_at": at(second)}


def is_there(company: Company, line: Fields) -> bool:
    return line["id"] in company.rows(TABLE[line["type"]])


def counts(summary: LoadSummary) -> tuple[int, int, int]:
    return sum(summary.written.values()), sum(summary.removed.values()), summary.stale


def test_an_older_line_that_comes_after_the_removal_is_stale(
    known: Company, options: LoadOptions, line: Fields
) -> None:
    known.load(line)
    assert counts(load_with(known, options, removed(line, 20))) == (0, 1, 0)
    assert counts(load_with(known, options, {**line, "updated_at": at(15)})) == (0, 0, 1)
    assert not is_there(known, line)


def test_a_removal_may_come_before_its_row(known: Company, options: LoadOptions, line: Fields) -> None:
    assert counts(load_with(known, options, removed(line, 20))) == (0, 0, 0)
    assert counts(load_with(known, options, line)) == (0, 0, 1)
    assert not is_there(known, line)


def test_a_newer_line_brings_the_row_back(known: Company, options: LoadOptions, line: Fields) -> None:
    load_with(known, options, removed(line, 20))
    assert counts(load_with(known, options, {**line, "updated_at": at(21)})) == (1, 0, 0)
    assert counts(load_with(known, options, {**line, "updated_at": at(22)}, removed(line, 20))) == (1, 0, 1)
    assert is_there(known, line)


def test_a_removal_that_comes_again_is_stale(known: Company, options: LoadOptions, line: Fields) -> None:
    known.load(line)
    load_with(known, options, removed(line, 20))
    assert counts(load_with(known, options, removed(line, 20))) == (0, 0, 1)
    assert counts(load_with(known, options, removed(line, 19))) == (0, 0, 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("together", [True, False])
def test_at_the_same_time_the_row_stays_in_whatever_order(
    known: Company, options: LoadOptions, line: Fields, order: tuple[int, int], *, together: bool
) -> None:
    lines = [(line, removed(line, 10))[place] for place in order]
    for some in [lines] if together else [[one] for one in lines]:
        load_with(known, options, *some)
    assert is_there(known, line)


def test_a_line_older_than_the_removal_adds_nothing_to_a_newer_line(known: Company, options: LoadOptions) -> None:
    contact = known.contact(phone="old", updated_at=at(10))
    newer = {name: value for name, value in contact.items() if name != "phone"} | {"updated_at": at(30)}
    load_with(known, options, removed(contact, 20))
    assert counts(load_with(known, replace(options, keeps_left_out=True), contact, newer)) == (1, 0, 1)
    assert known.rows("contacts")[contact["id"]]["phone"] is None


def test_a_line_without_a_time_always_counts(known: Company, options: LoadOptions) -> None:
    contact = known.contact()
    load_with(known, options, removed(contact, 20))
    load_with(known, options, contact)
    assert is_there(known, contact)
    load_with(known, options, removal(contact))
    assert not is_there(known, contact)


def test_a_removal_that_is_refused_is_not_remembered(known: Company) -> None:
    each = LoadOptions(mode="each", if_newer=True)
    contact = known.contact(updated_at=at(10))
    case = known.case(contact_id=contact["id"])
    known.load(contact, case)
    assert load_with(known, each, removed(contact, 20)).error_count == 1
    known.load(removal(case), removal(contact))
    assert counts(load_with(known, each, {**contact, "updated_at": at(15)})) == (1, 0, 0)


def test_a_load_that_does_not_ask_brings_it_back(known: Company, options: LoadOptions, line: Fields) -> None:
    load_with(known, options, removed(line, 20))
    known.load(line)
    assert is_there(known, line)
    assert counts(load_with(known, options, {**line, "updated_at": at(11)})) == (1, 0, 0)


def test_another_organizations_row_with_the_same_id_is_another_row(
    known: Company, options: LoadOptions, line: Fields
) -> None:
    other = Company(known.connection, known.box)
    other.load(other.organization())
    load_with(known, options, removed(line, 20))
    assert counts(load_with(other, options, {**line, "organization_id": other.id})) == (1, 0, 0)


def test_removals_are_forgotten_with_old_events(known: Company, options: LoadOptions, line: Fields) -> None:
    load_with(known, options, removed(line, 20))
    events.prune_events(known.connection, before="2020-01-01T00:00:00Z")
    assert counts(load_with(known, options, line)) == (0, 0, 1)
    events.prune_events(known.connection, before="infinity")
    assert counts(load_with(known, options, line)) == (1, 0, 0)


class TestContents:
    """The conversation of a removed case, which has no times of its own."""

    @pytest.fixture
    def lines(self, known: Company) -> list[Fields]:
        """A case, an activity and a message."""
        case = known.case(updated_at=at(10))
        activity = known.activity(case_id=case["id"])
        return [case, activity, known.message(activity_id=activity["id"])]

    def assert_gone(self, company: Company) -> None:
        assert [company.rows(table) for table in ("cases", "activities", "messages")] == [{}, {}, {}]

    def assert_stale(self, company: Company, options: LoadOptions, *lines: Fields) -> None:
        """Each line by itself, all of them, and those of the conversation are stale."""
        for some in (lines, lines[1:], *([line] for line in lines), lines):
            summary = load_with(company, options, *some)
            assert (counts(summary), summary.unchanged) == ((0, 0, len(some)), 0)
        self.assert_gone(company)

    def test_what_comes_again_after_the_removal_is_stale(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        load_with(known, options, *lines)
        load_with(known, options, removed(lines[0], 20))
        self.assert_stale(known, options, *lines)

    def test_what_comes_for_the_first_time_after_the_removal_is_stale(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        load_with(known, options, removed(lines[0], 20))
        self.assert_stale(known, options, *lines)

    def test_what_came_with_the_removal_is_stale_afterwards(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        load_with(known, options, *lines, removed(lines[0], 20))
        self.assert_stale(known, options, *lines)

    def test_a_message_of_a_removed_activity_is_stale(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        _, activity, message = lines
        load_with(known, options, *lines)
        load_with(known, options, removal(message), removal(activity))
        assert counts(load_with(known, options, message)) == (0, 0, 1)
        assert counts(load_with(known, options, activity, message)) == (2, 0, 0)

    def test_an_activity_that_is_in_another_case_stays_there(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        case, activity, message = lines
        other = known.case(updated_at=at(10))
        load_with(known, options, *lines, other)
        load_with(known, options, {**activity, "case_id": other["id"]})
        load_with(known, options, removed(case, 20))
        assert counts(load_with(known, options, activity)) == (0, 0, 1)
        assert known.rows("messages")[message["id"]]["case_id"] == UUID(other["id"])
        assert counts(load_with(known, options, {**message, "text": "Changed"})) == (1, 0, 0)

    def test_with_a_newer_line_of_the_case_it_comes_back(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        case, *conversation = lines
        load_with(known, options, *lines)
        load_with(known, options, removed(case, 20))
        assert counts(load_with(known, options, {**case, "updated_at": at(30)}, *conversation)) == (3, 0, 0)

    def test_a_case_that_never_was_is_still_an_error(
        self, known: Company, options: LoadOptions, lines: list[Fields]
    ) -> None:
        load_with(known, options, removed(known.case(updated_at=at(10)), 20))
        for some in (lines[1:], lines[2:]):
            if options.mode == "each":
                assert load_with(known, options, *some).error_count == len(some)
            else:
                with pytest.raises(LoadError):
                    load_with(known, options, *some)

    def test_after_a_request_that_deletes_the_case_it_is_stale(
        self, known: Company, options: LoadOptions, lines: list[Fields], client: FlaskClient
    ) -> None:
        load_with(known, options, *lines, user := known.user())
        _, token = administration.create_token(
            known.connection, organization_id=UUID(known.id), user_id=UUID(user["id"]), scopes=["cases:write"]
        )
        path = f"/api/v5/orgs/{known.id}/cases/{lines[0]['id']}"
        assert client.delete(path, headers={"Authorization": f"Bearer {token}"}).status_code == 204
        self.assert_stale(known, options, *lines)


def test_a_case_that_was_deleted_by_request_is_not_brought_back_by_what_is_older(
    client: FlaskClient, organization: Organization
) -> None:
    case_id = organization.case(None)
    token = organization.token_with("cases:write")
    headers = {"Authorization": f"Bearer {token}"}
    path = f"/api/v5/orgs/{organization.id}"
    shown: Any = client.get(f"{path}/cases/{case_id}", headers=headers).json
    names = ("id", "case_number", "status", "priority", "created_at", "updated_at")
    line = {"type": "case", **{name: shown[name] for name in names}}

    def import_line(**changes: Any) -> Any:
        answer = client.post(
            f"{path}/import?if_newer=true", json=line | changes, content_type="application/x-ndjson", headers=headers
        )
        assert answer.status_code == 200
        return answer.json

    assert client.delete(f"{path}/cases/{case_id}", headers=headers).status_code == 204
    assert import_line()["stale"] == 1
    assert client.delete(f"{path}/cases/{case_id}", headers=headers).status_code == 404
    assert import_line(updated_at="2999-01-01T00:00:00Z")["written"]["case"] == 1
    assert isinstance(case_id, UUID)

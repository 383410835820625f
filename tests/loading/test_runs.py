"""What each load leaves behind for each of its organizations."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from cases_service.loading.load import load, load_in_batches
from cases_service.loading.outcome import LoadOptions, LoadSummary
from tests.loading.test_loading import LATER, TIME, Company, Fields, company, file_of, removal

__all__ = ["company"]

Mode = Literal["all", "each"]

EACH = LoadOptions(mode="each")
IN_BOTH_MODES = pytest.mark.parametrize("mode", ["all", "each"])
UNREADABLE = b"{"


def runs(company: Company) -> list[tuple[Any, ...]]:
    return company.connection.execute(
        "select source, is_stored, lines, written, removed, stale, wrong from import_runs where organization_id = %s"
        " order by finished_at",
        [company.id],
    ).fetchall()


def last(company: Company) -> dict[str, int]:
    """Return the counts of the latest run that are not zero."""
    names = ("lines", "written", "removed", "stale", "wrong")
    return {name: number for name, number in zip(names, runs(company)[-1][2:], strict=True) if number}


def take(company: Company, *lines: Fields | bytes, options: LoadOptions) -> LoadSummary:
    return load(company.connection, [file_of(*lines)], box=company.box, options=options)


def assert_adds_up(summary: LoadSummary, *companies: Company, nobodys: int = 0) -> None:
    """Check that the latest runs of the companies come to the summary, except for lines that name no organization."""
    totals = {
        "lines": summary.lines - nobodys,
        "written": sum(summary.written.values()),
        "removed": sum(summary.removed.values()),
        "stale": summary.stale,
        "wrong": summary.error_count - nobodys,
    }
    assert {name: sum(last(one).get(name, 0) for one in companies) for name in totals} == totals


def everything(company: Company) -> list[Fields]:
    """Return a line of each type of an organization."""
    visitor, user, stage = company.visitor(), company.user(), company.stage()
    contact = company.contact(visitor_id=visitor["id"])
    case = company.case(contact_id=contact["id"], owner_id=user["id"], case_funnel_stage_id=stage["id"])
    activity = company.activity(case_id=case["id"])
    message = company.message(activity_id=activity["id"])
    rest = [company.organization(), company.key(), company.event(external_id=visitor["external_id"])]
    return [visitor, user, stage, contact, case, activity, message, *rest]


@pytest.fixture
def other(company: Company) -> Company:
    return company.another()


@pytest.fixture
def both(company: Company, other: Company) -> tuple[Company, Company]:
    """Two organizations that exist, each without a run."""
    for one in (company, other):
        one.load(one.organization())
    company.connection.execute("delete from import_runs")
    return company, other


def test_a_load_of_one_organization_leaves_what_it_came_to(company: Company) -> None:
    begun = datetime.now(UTC)
    company.load(company.organization(), company.case(), company.case())
    case = next(iter(company.rows("cases").values()))
    stale = company.case(id=str(case["id"]), updated_at=TIME)
    gone = {"type": "case", "organization_id": company.id, "id": "no such case", "deleted": True}
    wrong = company.case(status="Done")
    take(company, stale, gone, wrong, options=LoadOptions(mode="each", if_newer=True))
    assert runs(company) == [("load", True, 3, 3, 0, 0, 0), ("load", True, 3, 0, 0, 1, 1)]
    (finished_at, duration_ms), *_ = company.connection.execute(
        "select finished_at, duration_ms from import_runs where organization_id = %s", [company.id]
    ).fetchall()
    assert begun <= finished_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert 0 <= duration_ms < 60_000


def test_a_load_that_fails_leaves_nothing_behind(company: Company) -> None:
    company.load(company.organization())
    company.error(file_of(company.case(status="Done")))
    assert len(runs(company)) == 1


@IN_BOTH_MODES
def test_rows_of_each_type_count_for_their_organization(company: Company, other: Company, mode: Mode) -> None:
    lines = [*everything(company), other.organization(), other.user()]
    summary = take(company, *lines, options=LoadOptions(mode=mode))
    assert runs(company) == [("load", True, 10, 10, 0, 0, 0)]
    assert runs(other) == [("load", True, 2, 2, 0, 0, 0)]
    assert_adds_up(summary, company, other)
    assert sum(summary.written.values()) == 12


@IN_BOTH_MODES
def test_unchanged_lines_are_lines_alone(company: Company, other: Company, mode: Mode) -> None:
    user = other.user()
    lines = [*everything(company), other.organization(), user]
    company.load(*lines)
    summary = take(company, *lines, {**user, "alias": "new"}, options=LoadOptions(mode=mode))
    assert (last(company), last(other)) == ({"lines": 10}, {"lines": 3, "written": 1})
    assert_adds_up(summary, company, other)


@IN_BOTH_MODES
def test_removed_rows_count_for_their_organization(both: tuple[Company, Company], mode: Mode) -> None:
    company, other = both
    cases, others = [company.case() for _ in range(3)], [other.case(), other.contact()]
    company.load(*cases, *others)
    gone = [removal(line) for line in (*cases[:2], *others)]
    summary = take(company, *gone, removal(company.case()), options=LoadOptions(mode=mode))
    assert (last(company), last(other)) == ({"lines": 3, "removed": 2}, {"lines": 2, "removed": 2})
    assert_adds_up(summary, company, other)


@IN_BOTH_MODES
def test_stale_lines_count_for_their_organization(both: tuple[Company, Company], mode: Mode) -> None:
    company, other = both
    case, gone, newer = company.case(), company.case(), other.case(updated_at=LATER)
    company.load(case, gone, newer)
    options = LoadOptions(mode=mode, if_newer=True)
    removed = {**removal(gone), "updated_at": LATER}
    take(company, removed, options=options)
    older = {**newer, "updated_at": TIME, "subject": "older"}
    lines = [case, removed, gone, older, older, {**case, "updated_at": LATER}, other.user()]
    summary = take(company, *lines, options=options)
    # The second line of a row, a removal that is done, a line older than that, and one older than its row.
    assert last(company) == {"lines": 4, "written": 1, "stale": 3}
    assert last(other) == {"lines": 3, "written": 1, "stale": 2}
    assert_adds_up(summary, company, other)


@IN_BOTH_MODES
def test_merged_lines_count_for_their_organization(both: tuple[Company, Company], mode: Mode) -> None:
    company, other = both
    case, others = company.case(), other.case()
    part = {**others, "subject": "new"}
    options = LoadOptions(mode=mode, if_newer=True, keeps_left_out=True)
    summary = take(company, case, {**case, "subject": "new"}, others, part, others, options=options)
    assert last(company) == {"lines": 2, "written": 1, "stale": 1}
    assert last(other) == {"lines": 3, "written": 1, "stale": 2}
    assert_adds_up(summary, company, other)


def test_wrong_lines_count_for_the_organization_that_they_name(both: tuple[Company, Company]) -> None:
    company, other = both
    contact = other.contact()
    company.load(contact, other.case(contact_id=contact["id"]))
    number = other.case()
    summary = take(
        company,
        company.case(status="Done"),
        company.organization(name=5),
        company.event(position=0),
        company.case(owner_id="nobody"),
        company.user(),
        UNREADABLE,
        {"type": "user", "organization_id": "A", "id": "1"},
        number,
        other.case(case_number=number["case_number"]),
        removal(contact),
        options=EACH,
    )
    assert last(company) == {"lines": 5, "written": 1, "wrong": 4}
    assert last(other) == {"lines": 3, "written": 1, "wrong": 2}
    assert_adds_up(summary, company, other, nobodys=2)


def test_a_wrong_line_of_a_row_with_others_counts_once(both: tuple[Company, Company]) -> None:
    company, other = both
    case = company.case()
    summary = take(company, case, {**case, "owner_id": "nobody"}, other.case(contact_id="nobody"), options=EACH)
    assert last(company) == {"lines": 2, "written": 1, "wrong": 1}
    assert last(other) == {"lines": 1, "wrong": 1}
    assert_adds_up(summary, company, other)


def test_lines_found_wrong_after_the_writing_count_for_their_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    stored = company.visitor()
    company.load(stored, company.contact(visitor_id=stored["id"]))
    # The removal fails, as a contact needs the row: so its external id is not free.
    taken = company.visitor(external_id=stored["external_id"])
    summary = take(company, removal(stored), taken, other.user(), options=EACH)
    assert last(company) == {"lines": 2, "wrong": 2}
    assert last(other) == {"lines": 1, "written": 1}
    assert_adds_up(summary, company, other)


def test_signing_keys_that_are_refused_count_for_their_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    key = company.key()
    company.load(key)
    changed = {**key, "secret": company.key()["secret"]}
    summary = take(company, changed, other.key(), other.key(organization_id=company.id), options=EACH)
    assert last(company) == {"lines": 2, "written": 1, "wrong": 1}
    assert last(other) == {"lines": 1, "written": 1}
    assert_adds_up(summary, company, other)


def test_rows_that_a_snapshot_does_not_name_count_for_their_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    stages, others = [company.stage() for _ in range(4)], [other.stage() for _ in range(4)]
    company.load(*stages, *others)
    summary = take(company, *stages[:3], *others[:2], options=LoadOptions(maximum_removals=0.5))
    assert (last(company), last(other)) == ({"lines": 3, "removed": 1}, {"lines": 2, "removed": 2})
    assert_adds_up(summary, company, other)


def test_batches_are_added_up_for_each_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    cases, others = [company.case() for _ in range(3)], [other.case() for _ in range(2)]
    lines: list[Fields | bytes] = [
        *cases,
        others[0],
        other.case(priority=9),
        UNREADABLE,
        others[1],
        removal(cases[0]),
        cases[1],
    ]
    summary = load_in_batches(company.connection, [file_of(*lines)], size=2, box=company.box, options=EACH)
    assert runs(company) == [("load", True, 5, 3, 1, 0, 0)]
    assert runs(other) == [("load", True, 3, 2, 0, 0, 1)]
    assert_adds_up(summary, company, other, nobodys=1)


def test_unreadable_lines_are_of_the_only_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    take(company, company.case(), UNREADABLE, options=EACH)
    assert last(company) == {"lines": 2, "written": 1, "wrong": 1}
    assert runs(other) == []


def test_an_organization_whose_lines_are_all_wrong_is_told(both: tuple[Company, Company]) -> None:
    company, other = both
    take(company, company.case(), other.case(status="Done"), options=EACH)
    assert (last(company), last(other)) == ({"lines": 1, "written": 1}, {"lines": 1, "wrong": 1})


def test_an_id_with_capitals_is_the_same_organization(both: tuple[Company, Company]) -> None:
    company, other = both
    loud = company.another()
    loud.id = company.id.upper()
    summary = take(company, company.case(), loud.case(), loud.case(status="Done"), other.case(), options=EACH)
    assert last(company) == {"lines": 3, "written": 2, "wrong": 1}
    assert_adds_up(summary, company, other)

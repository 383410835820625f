"""Loads that remove what no line names, that rehearse, and that commit in batches."""

from collections.abc import Callable

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.load import load, load_in_batches
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from tests.loading.test_loading import LATER, Company, Fields, company, file_of
from tests.loading.test_runs import runs

__all__ = ["company"]

SNAPSHOT = LoadOptions(maximum_removals=0.1)
Taken = Callable[..., LoadSummary]


@pytest.fixture
def take(connection: psycopg.Connection, box: SecretBox) -> Taken:
    """Load lines as a snapshot."""

    def take(*lines: Fields, options: LoadOptions = SNAPSHOT) -> LoadSummary:
        return load(connection, [file_of(*lines)], box=box, options=options)

    return take


def whole(company: Company, cases: int) -> list[Fields]:
    """Return a company with a visitor, ten contacts and stages, and some cases."""
    visitor, stages = company.visitor(), [company.stage() for _ in range(10)]
    contacts = [company.contact(visitor_id=visitor["id"]) for _ in range(10)]
    made = [company.case(contact_id=contacts[0]["id"]) for _ in range(cases)]
    return [company.organization(), visitor, *stages, *contacts, *made]


def test_what_no_line_names_is_removed(company: Company, take: Taken) -> None:
    lines = whole(company, 20)
    company.load(*lines)
    stage, contact, case = lines[2], lines[-21], lines[-1]
    summary = take(*(line for line in lines if line not in (stage, contact, case)))
    assert {name: count for name, count in summary.removed.items() if count} == {
        "contact": 1,
        "case_funnel_stage": 1,
        "case": 1,
    }
    assert (len(company.rows("cases")), len(company.rows("contacts"))) == (19, 9)
    assert (sum(summary.written.values()), summary.unchanged) == (0, len(lines) - 3)


def test_other_organizations_and_users_are_left_alone(company: Company, take: Taken) -> None:
    lines, other = [*whole(company, 20), company.user()], company.another()
    others = whole(other, 3)
    company.load(*lines, *others)
    summary = take(*lines[:-1])
    assert sum(summary.removed.values()) == 0
    assert len(company.rows("users")) == 1
    assert len(other.rows("cases")) == 3


@pytest.mark.parametrize(("gone", "is_refused"), [(2, False), (3, True)])
def test_more_than_the_share_that_may_go_is_refused_and_nothing_is_written(
    company: Company, take: Taken, gone: int, is_refused: bool
) -> None:
    lines = whole(company, 20)
    company.load(*lines)
    before = company.snapshot()
    left = [*lines[:-gone], company.case()]
    if not is_refused:
        assert sum(take(*left).removed.values()) == gone
        return
    with pytest.raises(LoadError) as refused:
        take(*left)
    assert str(refused.value) == (
        f"nothing was loaded: the files name all but 3 of the 20 cases of organization {company.id}, and more than 0.1"
        " of them are not removed (--max-removals)"
    )
    assert company.snapshot() == before


def test_files_without_a_line_remove_nothing(company: Company, take: Taken) -> None:
    company.load(*whole(company, 3))
    assert sum(take().removed.values()) == 0
    assert len(company.rows("cases")) == 3


def test_a_line_that_is_too_old_names_its_row_all_the_same(company: Company, take: Taken) -> None:
    lines = whole(company, 20)
    company.load(*lines[:-1], {**lines[-1], "updated_at": LATER, "subject": "changed"})
    summary = take(*lines, options=LoadOptions(maximum_removals=0.1, if_newer=True))
    assert sum(summary.removed.values()) == 0
    assert company.rows("cases")[lines[-1]["id"]]["subject"] == "changed"


def test_what_is_newer_than_the_files_stays_where_the_newer_counts(company: Company, take: Taken) -> None:
    lines = whole(company, 20)
    since = company.case(updated_at=LATER)
    company.load(*lines, since)
    assert sum(take(*lines, options=LoadOptions(maximum_removals=0.1, if_newer=True)).removed.values()) == 0
    assert since["id"] in company.rows("cases")
    assert take(*lines).removed["case"] == 1


def test_a_row_that_is_still_referred_to_is_an_error(company: Company, take: Taken) -> None:
    lines = whole(company, 20)
    company.load(*lines)
    needed = lines[12]
    with pytest.raises(LoadError, match="nothing was loaded: rows refer to others that no line names"):
        take(*(line for line in lines if line != needed))
    assert needed["id"] in company.rows("contacts")


def test_a_rehearsal_writes_nothing_and_names_every_error(
    company: Company, connection: psycopg.Connection, box: SecretBox
) -> None:
    lines = [*whole(company, 3), company.case(status="Done"), company.case(contact_id="nobody")]
    options = LoadOptions(mode="each", maximum_errors=None)
    summary = load(connection, [file_of(*lines)], box=box, options=options, rehearses=True)
    assert [(error.line, error.field) for error in summary.errors] == [
        (len(lines) - 1, "status"),
        (len(lines), "contact_id"),
    ]
    assert company.rows("cases") == {}
    assert runs(company) == []


def test_batches_are_committed_one_by_one(company: Company, connection: psycopg.Connection, box: SecretBox) -> None:
    lines = whole(company, 20)
    files = [file_of(*lines, company.case(status="Done"))]
    with pytest.raises(LoadError) as refused:
        load_in_batches(connection, files, size=25, box=box)
    assert str(refused.value).startswith(f"a.ndjson:{len(lines) + 1}: status: expected ")
    assert str(refused.value).endswith("; of the lines before its batch, 25 are loaded")
    assert len(company.rows("cases")) == 3
    assert runs(company) == [("load", True, 25, 25, 0, 0, 0)]
    summary = load_in_batches(connection, [file_of(*lines), file_of(*lines)], size=25, box=box)
    assert (summary.lines, sum(summary.written.values()), summary.unchanged) == (84, 17, 67)
    assert [run[2:4] for run in runs(company)] == [(25, 25), (84, 17)]

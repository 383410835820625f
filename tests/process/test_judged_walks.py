"""The judge of the consistency tests can tell a right walk from each kind of wrong one."""

import copy
from collections.abc import Callable
from uuid import UUID

import pytest

from cases_service.store.cases import ORDERINGS
from tests.process.journal import Journal, Key, State, Version
from tests.process.walks import FILTERS, Collection, Judge, Page, Walk

OURS, THEIRS = UUID(int=1), UUID(int=2)
CONTACTS = {UUID(int=11): "ada", UUID(int=12): "grace"}
CASES = [Key(OURS, UUID(int=100 + number)) for number in range(12)]
EARLIER, LATER = CASES[5], CASES[6]
"""Cases that are on the same page in every ordering, and that change while the walk goes on, one after the other."""
HERS = Key(OURS, UUID(int=200))
BEGAN, PAGE_SIZE = 10.0, 4


def state(serial: int, *, contact: int = 11, number: int = 0, status: str = "Open") -> State:
    return State(serial, UUID(int=contact), status, 3, None, created=number // 3, updated=number // 3)


@pytest.fixture
def journal() -> Journal:
    journal = Journal(visitors=CONTACTS)
    for organization_id in (OURS, THEIRS):
        ids = [{"id": str(contact_id), "organization_id": str(organization_id)} for contact_id in CONTACTS]
        journal.contacts[organization_id] = dict(zip(CONTACTS, ids, strict=True))
    journal.add([*CASES, HERS, Key(THEIRS, CASES[0].id)])
    for number, (key, history) in enumerate(journal.histories.items()):
        history.versions.append(Version(state(1, number=number, contact=12 if key == HERS else 11), sent=1, done=2))
    for number, key, sent in ((5, EARLIER, BEGAN + 0.1), (6, LATER, BEGAN + 0.3)):
        new = state(2, number=number, status="Closed")
        journal.histories[key].versions.append(Version(new, sent=sent, done=sent + 0.1))
    return journal


def shown(journal: Journal, key: Key, version: int = 1) -> dict[str, object]:
    found = journal.histories[key].versions[version].state
    assert found is not None
    document = journal.shown(key, found)
    assert document is not None
    return document


@pytest.fixture(params=[(ordering, backward) for ordering in ORDERINGS for backward in (False, True)])
def walk(journal: Journal, request: pytest.FixtureRequest) -> Walk:
    """A right walk: the earlier change shows, the later one does not yet."""
    ordering, backward = request.param
    in_order = CASES[::-1] if ordering.startswith("-") else CASES
    results = [shown(journal, key, 2 if key == EARLIER else 1) for key in in_order]
    pages = [
        Page(BEGAN, BEGAN + 1, results[i : i + PAGE_SIZE], "before" if i else None, "after" if i < 8 else None)
        for i in range(0, len(results), PAGE_SIZE)
    ]
    collection = Collection(OURS, "ada", ordering, FILTERS[0])
    return Walk(collection, pages[::-1] if backward else pages, backward=backward)


def in_middle(walk: Walk, key: Key) -> dict[str, object]:
    """Return a case of the page in the middle."""
    return next(case for case in walk.pages[1].results if case["id"] == str(key.id))


def test_a_right_walk_is_right(journal: Journal, walk: Walk) -> None:
    verdict = Judge(journal).judge(walk)
    assert (verdict.wrong, verdict.lasting, verdict.changed) == ([], len(CASES), 2)


def a_case_left_out(walk: Walk, journal: Journal) -> None:
    del walk.pages[1].results[1]


def a_case_left_out_between_pages(walk: Walk, journal: Journal) -> None:
    del walk.pages[0].results[0 if walk.backward else -1]


def a_page_left_out(walk: Walk, journal: Journal) -> None:
    del walk.pages[1]


def a_case_twice(walk: Walk, journal: Journal) -> None:
    walk.pages[1].results.append(walk.pages[1].results[-1])


def a_case_on_two_pages(walk: Walk, journal: Journal) -> None:
    first, second = walk.pages[:2]
    if walk.backward:
        second.results.append(first.results[0])
    else:
        second.results.insert(0, first.results[-1])


def a_page_out_of_order(walk: Walk, journal: Journal) -> None:
    results = walk.pages[1].results
    results[0], results[1] = results[1], results[0]


def another_visitors(walk: Walk, journal: Journal) -> None:
    walk.pages[-1].results.append(shown(journal, HERS))


def another_organizations(walk: Walk, journal: Journal) -> None:
    walk.pages[0].results[0] = shown(journal, Key(THEIRS, CASES[0].id))


def what_was_never_written(walk: Walk, journal: Journal) -> None:
    in_middle(walk, EARLIER)["unread_message_count"] = 7


def parts_of_two_states(walk: Walk, journal: Journal) -> None:
    in_middle(walk, EARLIER)["status"] = "Open"


def another_contact(walk: Walk, journal: Journal) -> None:
    in_middle(walk, EARLIER)["contact"] = journal.contacts[OURS][UUID(int=12)]


def what_was_no_more(walk: Walk, journal: Journal) -> None:
    walk.pages[1].asked = BEGAN + 0.25
    in_middle(walk, EARLIER).update(shown(journal, EARLIER, 1))


def what_was_not_yet(walk: Walk, journal: Journal) -> None:
    walk.pages[1].answered = BEGAN + 0.05


def two_moments_on_a_page(walk: Walk, journal: Journal) -> None:
    in_middle(walk, EARLIER).update(shown(journal, EARLIER, 1))
    in_middle(walk, LATER).update(shown(journal, LATER, 2))


def an_end_too_early(walk: Walk, journal: Journal) -> None:
    end = walk.pages[1]
    del walk.pages[2]
    if walk.backward:
        end.previous = None
    else:
        end.next = None


def a_link_beyond_the_end(walk: Walk, journal: Journal) -> None:
    if walk.backward:
        walk.pages[0].next = "after"
    else:
        walk.pages[-1].next = "after"


def what_was_not_asked_for(walk: Walk, journal: Journal) -> None:
    only_open = next(only for only in FILTERS if "is_closed" in only.query)
    walk.collection = Collection(OURS, "ada", walk.collection.ordering, only_open)


@pytest.mark.parametrize(
    ("falsify", "complaint"),
    [
        (a_case_left_out, "missing from a page"),
        (a_case_left_out_between_pages, "missing from a walk"),
        (a_page_left_out, "missing from a walk"),
        (a_case_twice, "stands before"),
        (a_case_on_two_pages, "stands before"),
        (a_page_out_of_order, "stands before"),
        (another_visitors, "another visitor's"),
        (another_organizations, "another organization's"),
        (what_was_never_written, "never committed"),
        (parts_of_two_states, "never committed like this"),
        (another_contact, "never committed like this"),
        (what_was_no_more, "at no moment"),
        (what_was_not_yet, "at no moment"),
        (two_moments_on_a_page, "at no moment"),
        (an_end_too_early, "missing from a page"),
        (a_link_beyond_the_end, "a link to nothing"),
        (what_was_not_asked_for, "not what was asked for"),
    ],
)
def test_a_wrong_walk_is_wrong(
    journal: Journal, walk: Walk, falsify: Callable[[Walk, Journal], None], complaint: str
) -> None:
    walk.pages = copy.deepcopy(walk.pages)
    falsify(walk, journal)
    assert any(complaint in problem for problem in Judge(journal).judge(walk).wrong)

"""Who gets the next turn at the database, and who is refused, where there are less turns than who want one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from cases_service.database import fair_turns
from cases_service.database.fair_turns import THE_SERVICE, FairTurns, Turn, Whose
from cases_service.problems import OverloadedError
from tests.process.running import wait_for

ONE, OTHER = UUID(int=1), UUID(int=2)
SLOW_SECONDS = 2 * fair_turns._SLOW_SECONDS


def acquire(turns: FairTurns, *whose: Whose) -> list[Turn]:
    return [turns.acquire(one, timeout=0) for one in whose]


def visit(turns: FairTurns, whose: Whose) -> None:
    """Have a turn for a moment."""
    turns.release(turns.acquire(whose, timeout=0))


class Queue:
    """Threads that wait for a turn, and the order in which they had it."""

    def __init__(self, turns: FairTurns) -> None:
        self.served: list[Whose] = []
        self._turns = turns
        self._threads: list[threading.Thread] = []

    def add(self, *those: Whose) -> None:
        for whose in those:
            before = len(self._turns._waiting)
            self._threads.append(threading.Thread(target=self._wait, args=[whose]))
            self._threads[-1].start()
            wait_for(lambda before=before: len(self._turns._waiting) == before + 1)  # type: ignore[misc]

    def join(self) -> list[Whose]:
        for thread in self._threads:
            thread.join()
        return self.served

    def _wait(self, whose: Whose) -> None:
        turn = self._turns.acquire(whose, timeout=10)
        self.served.append(whose)
        self._turns.release(turn)


@contextmanager
def queue(turns: FairTurns) -> Iterator[Queue]:
    found = Queue(turns)
    yield found
    found.join()


def test_while_nobody_else_asks_one_visitor_has_all_turns_however_slow() -> None:
    turns = FairTurns(4, waiting=0)
    whose = Whose(ONE, "a")
    acquire(turns, whose)
    time.sleep(SLOW_SECONDS)
    assert len(acquire(turns, whose, whose, whose)) == 3


def test_while_turns_are_quick_one_organization_has_all_of_them_although_others_ask() -> None:
    turns = FairTurns(4, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    assert len(acquire(turns, *[Whose(ONE, str(i)) for i in range(4)])) == 4


def test_an_organization_with_slow_turns_leaves_the_last_one_to_the_others() -> None:
    turns = FairTurns(4, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    acquire(turns, *[Whose(ONE, str(i)) for i in range(3)])
    time.sleep(SLOW_SECONDS)
    with pytest.raises(OverloadedError):
        acquire(turns, Whose(ONE, "3"))
    assert acquire(turns, Whose(OTHER, "a"))


def test_a_visitor_with_slow_turns_leaves_the_last_one_to_the_others_of_the_organization() -> None:
    turns = FairTurns(4, waiting=0)
    visit(turns, Whose(ONE, "b"))
    acquire(turns, *[Whose(ONE, "a")] * 3)
    time.sleep(SLOW_SECONDS)
    with pytest.raises(OverloadedError):
        acquire(turns, Whose(ONE, "a"))
    assert acquire(turns, Whose(ONE, "b"))


def test_where_there_are_other_organizations_a_visitor_leaves_one_to_each_kind() -> None:
    turns = FairTurns(4, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    visit(turns, Whose(ONE, "b"))
    acquire(turns, *[Whose(ONE, "a")] * 2)
    time.sleep(SLOW_SECONDS)
    with pytest.raises(OverloadedError):
        acquire(turns, Whose(ONE, "a"))
    assert acquire(turns, Whose(ONE, "b"), Whose(OTHER, "a"))


def test_whose_turns_were_slow_lately_leaves_the_last_one_without_being_waited_for() -> None:
    turns = FairTurns(2, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    turns._time(Whose(ONE, "a"), 1.0)
    acquire(turns, Whose(ONE, "a"))
    with pytest.raises(OverloadedError):
        acquire(turns, Whose(ONE, "b"))


def test_one_slow_turn_among_many_counts_for_little() -> None:
    turns = FairTurns(2, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    turns._time(Whose(ONE, "a"), 1.0)
    for _ in range(25):
        visit(turns, Whose(ONE, "a"))
    assert len(acquire(turns, Whose(ONE, "a"), Whose(ONE, "a"))) == 2


def test_who_has_its_share_may_wait_in_a_bounded_number() -> None:
    turns = FairTurns(2, waiting=1)
    visit(turns, Whose(OTHER, "a"))
    (held,) = acquire(turns, Whose(ONE, "a"))
    time.sleep(SLOW_SECONDS)
    with queue(turns) as waiting:
        waiting.add(Whose(ONE, "b"))
        with pytest.raises(OverloadedError):
            acquire(turns, Whose(ONE, "c"))
        assert waiting.served == []
        turns.release(held)
    assert waiting.served == [Whose(ONE, "b")]


def test_an_organization_that_asked_long_ago_is_left_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_turns, "_LATELY_SECONDS", 0.01)
    turns = FairTurns(2, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    acquire(turns, Whose(ONE, "a"))
    time.sleep(SLOW_SECONDS)
    assert acquire(turns, Whose(ONE, "a"))


def test_the_service_itself_has_no_share() -> None:
    turns = FairTurns(2, waiting=0)
    visit(turns, Whose(OTHER, "a"))
    acquire(turns, THE_SERVICE)
    time.sleep(SLOW_SECONDS)
    assert acquire(turns, THE_SERVICE)


def test_the_next_turn_is_for_the_organization_that_has_the_fewest() -> None:
    turns = FairTurns(2, waiting=9)
    held, _ = acquire(turns, Whose(ONE, "a"), Whose(ONE, "b"))
    with queue(turns) as waiting:
        waiting.add(Whose(ONE, "c"), Whose(ONE, "d"), Whose(OTHER, "a"))
        turns.release(held)
    assert waiting.served[0] == Whose(OTHER, "a")


def test_organizations_that_wait_are_served_in_turn_and_so_are_their_visitors() -> None:
    turns = FairTurns(1, waiting=9)
    (held,) = acquire(turns, THE_SERVICE)
    a, b, c = Whose(ONE, "a"), Whose(ONE, "b"), Whose(OTHER, "c")
    with queue(turns) as waiting:
        waiting.add(a, a, b, c, c)
        turns.release(held)
    assert waiting.served == [a, c, b, c, a]


def test_without_a_turn_in_time_it_is_overloaded_and_nothing_is_left_behind() -> None:
    turns = FairTurns(1, waiting=9)
    (held,) = acquire(turns, Whose(ONE, "a"))
    began = time.monotonic()
    with pytest.raises(OverloadedError):
        turns.acquire(Whose(ONE, "a"), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 1
    turns.release(held)
    assert acquire(turns, Whose(ONE, "a"))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_turns, "_REMEMBERED", 8)
    turns = FairTurns(1, waiting=9)
    for number in range(50):
        visit(turns, Whose(UUID(int=number), "a"))
    assert len(turns._visitors) <= 8

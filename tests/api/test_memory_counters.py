"""The counts of the rate limits in memory: what `limits` expects of them, and how much is kept and looked at."""

import time

import pytest
from limits import RateLimitItem, parse
from limits.strategies import SlidingWindowCounterRateLimiter

from cases_service.api.memory_counters import MemoryCounters

Clock = list[float]
MINUTE = parse("10/minute")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the time is: the beginning of a window, until a test changes it."""
    now = [60_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def come(counters: MemoryCounters, subject: str, *, times: int = 1, item: RateLimitItem = MINUTE) -> list[bool]:
    limiter = SlidingWindowCounterRateLimiter(counters)
    return [limiter.hit(item, subject) for _ in range(times)]


def remaining(counters: MemoryCounters, subject: str, item: RateLimitItem = MINUTE) -> int:
    return SlidingWindowCounterRateLimiter(counters).get_window_stats(item, subject).remaining


def test_a_limit_holds(clock: Clock) -> None:
    assert come(MemoryCounters(), "token/a", times=11) == [True] * 10 + [False]


def test_the_window_before_counts_in_part(clock: Clock) -> None:
    counters = MemoryCounters()
    come(counters, "token/a", times=10)
    clock[0] += 60
    assert remaining(counters, "token/a") == 0
    clock[0] += 30
    assert remaining(counters, "token/a") == 5


def test_what_is_older_does_not_count(clock: Clock) -> None:
    counters = MemoryCounters()
    come(counters, "token/a", times=10)
    clock[0] += 120
    assert remaining(counters, "token/a") == 10


@pytest.mark.parametrize("jump", [-3600, 86400])
def test_a_clock_that_jumps_locks_nobody_out(clock: Clock, jump: float) -> None:
    counters = MemoryCounters()
    come(counters, "token/a", times=10)
    clock[0] += jump
    assert remaining(counters, "token/a") == 10


def test_who_is_told_when_to_return_may(clock: Clock) -> None:
    counters = MemoryCounters()
    come(counters, "token/a", times=10)
    clock[0] += 70
    while come(counters, "token/a") == [True]:
        pass
    clock[0] = SlidingWindowCounterRateLimiter(counters).get_window_stats(MINUTE, "token/a").reset_time + 0.001
    assert come(counters, "token/a") == [True]


def test_expired_counts_are_gone_as_soon_as_anybody_comes(clock: Clock) -> None:
    counters = MemoryCounters()
    for number in range(1000):
        come(counters, f"visitor/{number}")
    clock[0] += 120
    come(counters, "visitor/new")
    assert len(counters) == 1


def test_a_request_looks_at_its_own_subject_only(clock: Clock) -> None:
    """However many others there are."""
    counters = MemoryCounters()
    for number in range(1000):
        come(counters, f"visitor/{number}")
    (windows,) = counters._limits.values()
    windows.current = _Unscannable(windows.current)  # type: ignore[assignment]
    assert come(counters, "visitor/new") == [True]
    assert remaining(counters, "visitor/0") == 9


class _Unscannable(dict[str, int]):
    def __iter__(self) -> object:  # type: ignore[override]
        raise AssertionError("every subject was looked at")

    items = keys = values = __iter__  # type: ignore[assignment]

    def move_to_end(self, key: str) -> None:
        """Do nothing: a dictionary has no need to."""


def test_no_more_than_so_many_subjects_are_kept(clock: Clock) -> None:
    counters = MemoryCounters(most_subjects=100)
    for number in range(1000):
        come(counters, f"visitor/{number}")
    assert len(counters) == 100


def test_the_subject_that_came_longest_ago_is_forgotten_first(clock: Clock) -> None:
    counters = MemoryCounters(most_subjects=2)
    for subject in ("visitor/a", "visitor/b", "visitor/a", "visitor/c"):
        come(counters, subject)
    assert [remaining(counters, f"visitor/{name}") for name in "abc"] == [8, 10, 9]


def test_one_limits_subjects_displace_no_other_limits(clock: Clock) -> None:
    counters = MemoryCounters(most_subjects=2)
    come(counters, "address/a")
    for number in range(10):
        come(counters, f"visitor/{number}")
    assert remaining(counters, "address/a") == 9


def test_limits_of_different_length_are_counted_apart(clock: Clock) -> None:
    counters, hour = MemoryCounters(), parse("20/hour")
    for item in (MINUTE, hour):
        come(counters, "token/a", item=item)
    clock[0] += 120
    assert (remaining(counters, "token/a"), remaining(counters, "token/a", hour)) == (10, 19)

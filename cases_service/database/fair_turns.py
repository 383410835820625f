"""Schedules a worker's database reads fairly: among organizations, and within one among its visitors.

A turn is the right to use one connection. While turns are free, every read gets one at once. If reads wait, the next
turn goes to the organization with the fewest turns, and within it to the visitor with the fewest.

That does not help against slow statements, which do not end in time for the next read. So an organization whose turns
are slow leaves the last turn to other organizations, if any have sent reads within the last minute, and likewise a
visitor leaves one to the organization's other visitors. Reads beyond the share are soon refused, since a waiting read
holds a thread.
"""

import threading
from dataclasses import dataclass, field
from itertools import count
from math import inf
from time import monotonic
from typing import Final, Literal, NamedTuple, TypeAlias
from uuid import UUID

from cases_service.observability import metrics
from cases_service.problems import OverloadedError

Share: TypeAlias = Literal["organization", "visitor"]

_LATELY_SECONDS: Final = 60.0
# A page takes a few milliseconds. Turns shorter than this delay nobody.
_SLOW_SECONDS: Final = 0.05
# The weight of the latest turn in the moving average.
_WEIGHT: Final = 0.125
# While more turns than this are free, the next one cannot exceed a share.
_TO_SPARE: Final = 2
_REMEMBERED: Final = 4096


class Whose(NamedTuple):
    """The owner of a read: an organization, and a visitor of it if known; without either, the service itself."""

    organization_id: UUID | None = None
    visitor: str | None = None


THE_SERVICE: Final = Whose()


@dataclass(eq=False, slots=True)
class Turn:
    """A turn in use, since a time of `monotonic`."""

    whose: Whose
    since: float


@dataclass(eq=False, slots=True)
class _Waiter:
    whose: Whose
    number: int
    turn: Turn | None = None
    has_turn: threading.Event = field(default_factory=threading.Event)


class FairTurns:
    """The turns of one pool.

    Args:
        number: The number of turns.
        waiting: How many reads of an organization, or of a visitor, may wait once it has its share.

    """

    def __init__(self, number: int, *, waiting: int) -> None:
        self._number = number
        self._may_wait = waiting
        self._lock = threading.Lock()
        self._lent: list[Turn] = []
        self._waiting: list[_Waiter] = []
        self._numbers = count()
        self._organizations = _LastAsked()
        self._visitors: dict[UUID, _LastAsked] = {}
        self._seconds: dict[UUID | Whose, float] = {}
        self._last_served: dict[UUID | Whose | None, int] = {}

    def acquire(self, whose: Whose, *, timeout: float) -> Turn:
        """Return a turn, to be returned by `release`.

        Raises:
            OverloadedError: None became free within `timeout` seconds, or the share is used up and enough reads wait.

        """
        with self._lock:
            now = monotonic()
            self._note(whose, now)
            if not self._waiting and self._has_turn_for(whose, now):
                return self._lend(whose, now)
            waiter = self._enqueue(whose, now)
        if waiter.turn is None:
            self._wait(waiter, timeout)
        if waiter.turn is None:
            raise OverloadedError
        return waiter.turn

    def release(self, turn: Turn) -> None:
        """Return a turn, and give it to a waiting read."""
        with self._lock:
            now = monotonic()
            self._lent.remove(turn)
            self._time(turn.whose, now - turn.since)
            if self._waiting:
                self._serve(now)

    def _wait(self, waiter: _Waiter, timeout: float) -> None:
        started = monotonic()
        if not waiter.has_turn.wait(timeout):
            with self._lock:
                if waiter.turn is None:
                    self._waiting.remove(waiter)
        metrics.turn_wait.observe(monotonic() - started)

    def _note(self, whose: Whose, now: float) -> None:
        organization_id, visitor = whose
        if organization_id is None:
            return
        self._organizations.note(organization_id, now)
        if visitor is not None:
            if len(self._visitors) >= _REMEMBERED:
                self._visitors.clear()
            self._visitors.setdefault(organization_id, _LastAsked()).note(visitor, now)

    def _time(self, whose: Whose, seconds: float) -> None:
        """Update the average duration of the organization's and the visitor's turns."""
        if whose.organization_id is None:
            return
        if len(self._seconds) >= _REMEMBERED:
            self._seconds.clear()
        for who in (whose.organization_id,) if whose.visitor is None else (whose.organization_id, whose):
            average = self._seconds.get(who, 0.0)
            self._seconds[who] = average + _WEIGHT * (seconds - average)

    def _has_turn_for(self, whose: Whose, now: float) -> bool:
        free = self._number - len(self._lent)
        return free > _TO_SPARE or (free > 0 and self._exceeded(whose, now) is None)

    def _exceeded(self, whose: Whose, now: float) -> Share | None:
        """Return which share one more turn would exceed, if others compete for it; else None."""
        organization_id, visitor = whose
        if organization_id is None:
            return None
        share = self._number
        if self._organizations.has_another(organization_id, now):
            share = max(1, share - 1)
            turns = [turn for turn in self._lent if turn.whose.organization_id == organization_id]
            if len(turns) >= share and self._are_slow(organization_id, turns, now):
                return "organization"
        others = self._visitors.get(organization_id)
        if visitor is not None and others is not None and others.has_another(visitor, now):
            share = max(1, share - 1)
            turns = [turn for turn in self._lent if turn.whose == whose]
            if len(turns) >= share and self._are_slow(whose, turns, now):
                return "visitor"
        return None

    def _are_slow(self, who: UUID | Whose, turns: list[Turn], now: float) -> bool:
        return self._seconds.get(who, 0.0) > _SLOW_SECONDS or now - turns[0].since > _SLOW_SECONDS

    def _enqueue(self, whose: Whose, now: float) -> _Waiter:
        """Add a waiting read, which may at once get a turn that the other waiting reads may not have."""
        share = self._exceeded(whose, now)
        if share is not None and self._number_waiting(whose, share) >= self._may_wait:
            metrics.count_refused_turn(share)
            raise OverloadedError
        waiter = _Waiter(whose, next(self._numbers))
        self._waiting.append(waiter)
        self._serve(now)
        return waiter

    def _number_waiting(self, whose: Whose, share: Share) -> int:
        if share == "visitor":
            return sum(waiter.whose == whose for waiter in self._waiting)
        return sum(waiter.whose.organization_id == whose.organization_id for waiter in self._waiting)

    def _serve(self, now: float) -> None:
        while fitting := [waiter for waiter in self._waiting if self._has_turn_for(waiter.whose, now)]:
            chosen = min(fitting, key=self._precedence)
            self._waiting.remove(chosen)
            chosen.turn = self._lend(chosen.whose, now)
            chosen.has_turn.set()

    def _precedence(self, waiter: _Waiter) -> tuple[int, ...]:
        """Sort by the turns that organization and visitor have, then by the last service, then by arrival."""
        whose, served = waiter.whose, self._last_served
        return (
            sum(turn.whose.organization_id == whose.organization_id for turn in self._lent),
            served.get(whose.organization_id, -1),
            sum(turn.whose == whose for turn in self._lent),
            served.get(whose, -1),
            waiter.number,
        )

    def _lend(self, whose: Whose, now: float) -> Turn:
        if self._waiting:
            # The order of service matters only while reads wait.
            if len(self._last_served) >= _REMEMBERED:
                self._last_served.clear()
            self._last_served[whose.organization_id] = self._last_served[whose] = next(self._numbers)
        turn = Turn(whose, now)
        self._lent.append(turn)
        return turn


class _LastAsked:
    """The last requester, and when another one last came: enough to tell whether anyone has competitors."""

    def __init__(self) -> None:
        self._last: object = None
        self._last_at = self._another_at = -inf

    def note(self, who: object, now: float) -> None:
        if who != self._last:
            self._last, self._another_at = who, self._last_at
        self._last_at = now

    def has_another(self, who: object, now: float) -> bool:
        at = self._another_at if who == self._last else self._last_at
        return now - at <= _LATELY_SECONDS

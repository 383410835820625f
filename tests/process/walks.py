"""What a walk showed, held against what was committed: every promise of the contract, case by case.

A page is one look at the database. So there is a moment between its question and its answer at which all that it shows
was committed together, at which nothing else stood between its first and its last case, and its links were right.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from tests.process.journal import Journal, Key, State, Version

Position = tuple[float, int]
_BEFORE_ALL, _BEHIND_ALL = (-math.inf, 0), (math.inf, 0)


@dataclass(frozen=True)
class Filter:
    """A filter as it is asked for, and the states that it lets pass."""

    query: str
    passes: Callable[[State], bool]


FILTERS = (
    *[Filter("", lambda state: True)] * 3,
    Filter("&is_closed=false", lambda state: state.status != "Closed"),
    Filter("&status=Open,Pending", lambda state: state.status in {"Open", "Pending"}),
    Filter("&priority=2,4", lambda state: state.priority in {2, 4}),
    Filter("&latest_messaging_channel=null,email", lambda state: state.channel in {None, "email"}),
    # Two microseconds after the moment that `journal` counts from.
    Filter("&updated_since=2015-08-31T16:32:17.879125Z", lambda state: state.updated >= 2),
    Filter(
        "&created_until=2015-08-31T16:32:17.880123Z&status=Open,Closed",
        lambda state: state.created < 1000 and state.status in {"Open", "Closed"},
    ),
)


@dataclass(frozen=True)
class Collection:
    """The collection to walk."""

    organization_id: UUID
    external_id: str
    ordering: str
    filter: Filter

    @property
    def column(self) -> str:
        return self.ordering.removeprefix("-")

    @property
    def descends(self) -> bool:
        return self.ordering.startswith("-")


@dataclass
class Page:
    """What was answered, between two moments. What a replica answered may be as old as its lag: then asked earlier."""

    asked: float
    answered: float
    results: list[dict[str, Any]]
    previous: str | None
    next: str | None


@dataclass
class Walk:
    """The pages from the first to the last by `next`, or `backward` by `previous` from the last to the first."""

    collection: Collection
    pages: list[Page]
    backward: bool = False


@dataclass
class Verdict:
    """What a walk showed that it may not, and of what the promise held."""

    wrong: list[str] = field(default_factory=list)
    lasting: int = 0
    """Cases that were promised to be shown exactly once."""
    changed: int = 0
    """Cases of the visitor that changed meanwhile."""


class _Row(NamedTuple):
    """A case that a page shows as it was committed, and between which moments it may have been so."""

    key: Key
    position: Position
    since: float
    until: float


class Judge:
    """Knows the promises, and what was committed."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def judge(self, walk: Walk) -> Verdict:
        """Return everything that is wrong with a walk."""
        verdict = Verdict()
        seen: list[_Row] = []
        for page in walk.pages:
            rows = []
            for shown in page.results:
                row = self._row(walk.collection, shown)
                if isinstance(row, str):
                    verdict.wrong.append(row)
                else:
                    rows.append(row)
            if len(rows) == len(page.results):
                verdict.wrong += self._problems_of_page(walk.collection, page, rows)
            seen += reversed(rows) if walk.backward else rows
        falls = walk.collection.descends != walk.backward
        for one, other in pairwise(seen):
            if one.position == other.position or (one.position > other.position) != falls:
                verdict.wrong.append(f"{one.key} stands before {other.key}")
        self._check_lasting(walk, {row.key for row in seen}, verdict)
        return verdict

    def _row(self, collection: Collection, shown: dict[str, Any]) -> _Row | str:
        if shown["organization_id"] != str(collection.organization_id):
            return f"another organization's: {shown}"
        key = Key(collection.organization_id, UUID(shown["id"]))
        history = self._journal.histories.get(key)
        found = history and history.find(shown["unread_message_count"])
        if not found:
            return f"never committed: {shown}"
        state, since, until = found
        if self._journal.shown(key, state) != shown:
            return f"never committed like this: {shown}, but {state}"
        if not self._journal.belongs(state, collection.external_id):
            return f"another visitor's: {shown}"
        if not collection.filter.passes(state):
            return f"not what was asked for: {shown}"
        return _Row(key, state.position(key, collection.column), since, until)

    def _problems_of_page(self, collection: Collection, page: Page, rows: list[_Row]) -> Iterator[str]:
        """Yield what was at no moment of the page's question as it shows it."""
        since = max([page.asked, *(row.since for row in rows)])
        until = min([page.answered, *(row.until for row in rows)])
        if since > until:
            yield f"at no moment the page's: {rows} between {page.asked} and {page.answered}"
            return
        shown = {row.key for row in rows}
        others = {
            key: [self._position(collection, key, version) for version in history.during(since, until)]
            for key, history in self._journal.of(collection.organization_id)
            if key not in shown
        }
        below, above = (page.next, page.previous) if collection.descends else (page.previous, page.next)
        if not rows and (below or above):
            return
        # Where a link is null, the page reaches to that end.
        stand = [row.position for row in rows]
        lowest, highest = (min(stand) if below else _BEFORE_ALL), (max(stand) if above else _BEHIND_ALL)
        for key, positions in others.items():
            if all(position is not None and lowest < position < highest for position in positions):
                yield f"missing from a page: {key} {positions}"
        beyond = [position for positions in others.values() for position in positions if position is not None]
        if below and not any(position < lowest for position in beyond):
            yield f"a link to nothing: {below}"
        if above and not any(position > highest for position in beyond):
            yield f"a link to nothing: {above}"

    def _position(self, collection: Collection, key: Key, version: Version) -> Position | None:
        """Return where a version stands in a collection, None where it is not in it."""
        state = version.state
        if state is None or not self._journal.belongs(state, collection.external_id):
            return None
        return state.position(key, collection.column) if collection.filter.passes(state) else None

    def _check_lasting(self, walk: Walk, seen: set[Key], verdict: Verdict) -> None:
        """Look for each case that stood in one place throughout. It is not seen twice, as the order is strict."""
        since, until = walk.pages[0].asked, walk.pages[-1].answered
        for key, history in self._journal.of(walk.collection.organization_id):
            versions = history.during(since, until)
            positions = {self._position(walk.collection, key, version) for version in versions}
            verdict.changed += len(versions) > 1 and positions != {None}
            if len(positions) == 1 and None not in positions:
                verdict.lasting += 1
                if key not in seen:
                    verdict.wrong.append(f"missing from a walk: {key} {versions}")

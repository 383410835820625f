"""Where a load's lines come from, and what is wrong with them.

A line's place is its source and its number in one integer: the larger, the later.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cases_service.loading.outcome import LineError, LoadError

UNNAMED: Final = 2**62
"""The place of a removal that no line asks for: greater than the place of any line."""

_LINE_BITS: Final = 40


class Fault(NamedTuple):
    """What is wrong with a line, and with which of its fields."""

    field: str | None
    reason: str


class Sources:
    """The names of a load's sources, in the order in which they are read."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def add(self, name: str) -> int:
        """Add a source, and return the place before its first line's."""
        self._names.append(name)
        return len(self._names) - 1 << _LINE_BITS

    def locate(self, place: int) -> tuple[str, int]:
        """Return the source and the number of a line."""
        source, number = divmod(place, 2**_LINE_BITS)
        return self._names[source], number

    def error_at(self, place: int, fault: Fault) -> LoadError:
        """Return the error that names a line."""
        if place == UNNAMED:
            return LoadError(None, None, None, "nothing was loaded: rows refer to others that no line names")
        return LoadError(*self.locate(place), *fault)


@dataclass(slots=True)
class LineErrors:
    """The errors of lines, by their places: all are counted, and the first ones kept.

    Attributes:
        maximum: How many are kept; None for all.
        count: How many there are.
        organizations: How many each organization has, as far as lines tell theirs.

    """

    maximum: int | None
    count: int = 0
    organizations: Counter[str] = field(default_factory=Counter)
    _kept: list[tuple[int, Fault]] = field(default_factory=list)

    def add(self, place: int, fault: Fault, *, organization_id: str | None) -> None:
        """Add an error, of an organization if that is known."""
        self.count += 1
        if organization_id is not None:
            self.organizations[organization_id] += 1
        self._kept.append((place, fault))
        if self.maximum is not None and len(self._kept) > 2 * self.maximum:
            self._kept = self._first()

    def list_first(self, sources: Sources) -> list[LineError]:
        """Return the first errors, in the order of their lines."""
        return [LineError(*sources.locate(place), *fault) for place, fault in self._first()]

    def _first(self) -> list[tuple[int, Fault]]:
        return sorted(self._kept, key=lambda error: error[0])[: self.maximum]

"""Knows which cases of a visitor a request asks for."""

from dataclasses import dataclass
from typing import Any, Final

from cases_service import instants

STATUSES: Final = ("Open", "In Progress", "Pending", "Closed")
PRIORITIES: Final = (1, 2, 3, 4, 5)
NO_CHANNEL: Final = "null"
CHANNELS: Final = (NO_CHANNEL, "email", "whatsapp", "webchat")
"""In the order of their numbers in the column `facet` of cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a case must fulfil, everything of it; None lets all cases pass. Times are microseconds since 1970."""

    statuses: frozenset[str] | None = None
    is_closed: bool | None = None
    priorities: frozenset[int] | None = None
    channels: frozenset[str] | None = None
    created_since: int | None = None
    created_until: int | None = None
    updated_since: int | None = None
    updated_until: int | None = None

    def __bool__(self) -> bool:
        return self != Filters()

    @property
    def limits_status(self) -> bool:
        """Whether some statuses do not pass."""
        return self.statuses is not None or self.is_closed is not None

    @property
    def limits_facet(self) -> bool:
        """Whether some priorities or channels do not pass."""
        return self.priorities is not None or self.channels is not None

    def canonical(self) -> str:
        """Return a text that is the same for filters that let the same cases pass in the same words; '' for none."""
        if not self:
            return ""
        parameters = self.parameters()
        return ";".join(f"{name}={parameters[name]}" for name in sorted(parameters))

    def parameters(self) -> dict[str, Any]:
        """Return what the statements take: each condition, with everything it lets pass."""
        statuses = [
            status
            for status in STATUSES
            if (self.statuses is None or status in self.statuses)
            and (self.is_closed is None or self.is_closed == (status == "Closed"))
        ]
        facets = [
            priority * len(CHANNELS) + number
            for priority in PRIORITIES
            if self.priorities is None or priority in self.priorities
            for number, channel in enumerate(CHANNELS)
            if self.channels is None or channel in self.channels
        ]
        return {
            "statuses": statuses,
            "facets": facets,
            "created_since": _limit(self.created_since, "-infinity"),
            "created_until": _limit(self.created_until, "infinity"),
            "updated_since": _limit(self.updated_since, "-infinity"),
            "updated_until": _limit(self.updated_until, "infinity"),
        }


def _limit(microseconds: int | None, default: str) -> str:
    return default if microseconds is None else instants.from_microseconds(microseconds)

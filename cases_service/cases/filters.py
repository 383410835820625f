"""The filters of a request for a visitor's cases."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from cases_service.cases import timestamps

STATUSES: Final = ("Open", "In Progress", "Pending", "Closed")
PRIORITIES: Final = (1, 2, 3, 4, 5)
NO_CHANNEL: Final = "null"
CHANNELS: Final = (NO_CHANNEL, "email", "whatsapp", "webchat")
"""In the order of their numbers in the column `channel_number` of `cases`."""

Index = Literal["status", "priority", "channel"]
"""The attributes with indexes of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Conditions that a case must all meet; None means any value. Times are microseconds since 1970."""

    statuses: frozenset[str] | None = None
    is_closed: bool | None = None
    priorities: frozenset[int] | None = None
    channels: frozenset[str] | None = None
    created_since: int | None = None
    created_until: int | None = None
    updated_since: int | None = None
    updated_until: int | None = None

    def __bool__(self) -> bool:
        return self != _NONE

    def index(self, column: str) -> tuple[Index | None, bool]:
        """Return the attribute whose index to scan, and whether it covers the whole filter.

        None means the index of all cases by `column`, the time column that orders the page; it covers a range of that
        column.
        """
        if not self:
            return None, True
        wanted = self._wanted()
        shares = {name: len(wanted[name]) / number for name, number in _NUMBERS.items() if len(wanted[name]) < number}
        if "Closed" not in wanted["status"]:
            # In the long run nearly all cases are closed.
            shares["status"] = 0
        whole_range = (self.updated_range if column == "created_at" else self.created_range) == (None, None)
        chosen = min(shares, key=shares.__getitem__, default=None if whole_range else "status")
        return chosen, whole_range and len(shares) <= 1

    @property
    def created_range(self) -> tuple[int | None, int | None]:
        """The limits of the time of creation."""
        return self.created_since, self.created_until

    @property
    def updated_range(self) -> tuple[int | None, int | None]:
        """The limits of the time of the last update."""
        return self.updated_since, self.updated_until

    def canonical(self) -> str:
        """Return the same text for equal filters, however they were written; '' for no filter."""
        if not self:
            return ""
        parameters = self.parameters()
        return ";".join(f"{name}={parameters[name]}" for name in sorted(parameters))

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statements: for each condition, all values that meet it."""
        wanted = self._wanted()
        return {
            "statuses": wanted["status"],
            "priorities": wanted["priority"],
            "channels": wanted["channel"],
            "created_since": _limit(self.created_since, "-infinity"),
            "created_until": _limit(self.created_until, "infinity"),
            "updated_since": _limit(self.updated_since, "-infinity"),
            "updated_until": _limit(self.updated_until, "infinity"),
        }

    def _wanted(self) -> dict[Index, list[Any]]:
        """Return the values that meet the conditions."""
        return {
            "status": [
                status
                for status in STATUSES
                if (self.statuses is None or status in self.statuses)
                and (self.is_closed is None or self.is_closed == (status == "Closed"))
            ],
            "priority": [priority for priority in PRIORITIES if self.priorities is None or priority in self.priorities],
            "channel": [
                number for number, channel in enumerate(CHANNELS) if self.channels is None or channel in self.channels
            ],
        }


_NONE: Final = Filters()
_NUMBERS: Final[dict[Index, int]] = {"status": len(STATUSES), "priority": len(PRIORITIES), "channel": len(CHANNELS)}


def _limit(microseconds: int | None, default: str) -> str:
    return default if microseconds is None else timestamps.from_microseconds(microseconds)

"""What was committed, case by case, and between which moments each commit became visible.

A commit becomes visible after it was sent and before it was acknowledged. So each state of a case has a moment from
which it may have been seen, one from which it must have been, and the same for its end.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tests.factories import LONG_AGO

LABELS = {1: "None", 2: "Low", 3: "Normal", 4: "High", 5: "Critical"}


@dataclass(frozen=True)
class Key:
    """A case: two organizations may use one id."""

    organization_id: UUID
    id: UUID


@dataclass(frozen=True)
class State:
    """A case as it was written once: no two writes of one case have the same serial."""

    serial: int
    contact_id: UUID | None
    status: str
    priority: int
    channel: str | None
    created: int
    """Microseconds after a moment long ago."""
    updated: int

    def columns(self) -> dict[str, Any]:
        """Return what stands in the table."""
        return {
            "contact_id": self.contact_id,
            "subject": f"as written at {self.serial}",
            "status": self.status,
            "priority": self.priority,
            "latest_messaging_channel": self.channel,
            "closed_at": moment(self.updated) if self.status == "Closed" else None,
            "unread_message_count": self.serial,
            "created_at": moment(self.created),
            "updated_at": moment(self.updated),
        }

    def position(self, key: Key, column: str) -> tuple[int, int]:
        """Return where the case stands in ascending order."""
        return (self.created if column == "created_at" else self.updated), key.id.int

    def shown(self, key: Key, contact: Mapping[str, Any]) -> dict[str, Any]:
        """Return the case as the API shows it."""
        nothing = ("owner", "created_by_user", "updated_by_user", "case_funnel_stage")
        return {
            **{name: None for each in nothing for name in (each, f"{each}_id")},
            **{
                name: written(value) if isinstance(value, datetime) else value for name, value in self.columns().items()
            },
            "id": str(key.id),
            "organization_id": str(key.organization_id),
            "case_number": number_of(key),
            "contact_id": contact["id"],
            "contact": contact,
            "description": None,
            "priority_label": LABELS[self.priority],
            "is_closed": self.status == "Closed",
            "is_waiting": False,
            "channel_priority": None,
            "visitor_unread_message_count": 0,
        }


@dataclass
class Version:
    """A state, None where the case does not exist, and when the commit was sent and known to be done."""

    state: State | None
    sent: float = -math.inf
    done: float = -math.inf


@dataclass
class History:
    """All that was committed of a case, in order. Only one thread writes it."""

    versions: list[Version] = field(default_factory=lambda: [Version(None)])

    @property
    def last(self) -> State | None:
        return self.versions[-1].state

    def during(self, since: float, until: float) -> list[Version]:
        """Return the versions that may have been visible at some moment: one alone was visible all the time."""
        first = bisect_left(self.versions, since, key=lambda version: version.done) - 1
        return self.versions[max(first, 0) : bisect_right(self.versions, until, key=lambda version: version.sent)]

    def find(self, serial: object) -> tuple[State, float, float] | None:
        """Return the state with a serial, and between which moments it may have been visible."""
        for version, after in zip(self.versions, [*self.versions[1:], None], strict=True):
            if version.state is not None and version.state.serial == serial:
                return version.state, version.sent, math.inf if after is None else after.done
        return None


@dataclass
class Journal:
    """The histories of all cases, and the contacts, which do not change: as they are shown, and whose they are."""

    histories: dict[Key, History] = field(default_factory=dict)
    contacts: dict[UUID, dict[UUID, dict[str, Any]]] = field(default_factory=dict)
    """By organization: two may use one id here, too."""
    visitors: dict[UUID, str] = field(default_factory=dict)
    """The external identity of a contact's visitor, which is the same in each organization."""

    def add(self, keys: Iterable[Key]) -> None:
        """Begin the histories of cases that do not exist yet."""
        self.histories |= {key: History() for key in keys}

    def of(self, organization_id: UUID) -> Iterator[tuple[Key, History]]:
        """Return what was committed in one organization."""
        return ((key, history) for key, history in self.histories.items() if key.organization_id == organization_id)

    def belongs(self, state: State | None, external_id: str) -> bool:
        return state is not None and state.contact_id is not None and self.visitors[state.contact_id] == external_id

    def shown(self, key: Key, state: State) -> dict[str, Any] | None:
        """Return a case as the API shows it, None where no visitor sees it."""
        if state.contact_id is None:
            return None
        return state.shown(key, self.contacts[key.organization_id][state.contact_id])


def number_of(key: Key) -> str:
    return f"case {key.id}"


def moment(microseconds: int) -> datetime:
    return LONG_AGO + timedelta(microseconds=microseconds)


def written(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")

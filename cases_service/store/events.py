"""The events of visitors' actions: reading, writing and pruning them, with one statement each."""

from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import psycopg

from cases_service.cases.schemas import EventSchema
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import numbered, statements
from cases_service.store.conversations import dump_of

EventType = Literal["message_created", "case_closed", "case_reopened", "case_read"]

_EVENTS: Final = numbered("events")
_PRUNING: Final = statements("events")
_PRUNED: Final = 0
_POSITION: Final = 1


@dataclass(frozen=True, slots=True)
class Events:
    """Events in order, the position of the last one, and whether there are more."""

    pruned_position: int
    results: list[dict[str, Any]]
    last: int
    has_more: bool


def list_events(*, organization_id: UUID, after: int, page_size: int) -> Query[Events]:
    """Query an organization's events after a position."""

    def read(result: Result) -> Events:
        found = [row for row in result.rows if row[_POSITION] is not None]
        shown = found[:page_size]
        last = shown[-1][_POSITION] if shown else after
        results = dump_of(EventSchema, result, offset=_POSITION).dump(shown)
        return Events(result.rows[0][_PRUNED], results, last, len(found) > page_size)

    parameters = {"organization_id": organization_id, "after": after, "row_limit": page_size + 1}
    return Query(_EVENTS["list_events"], parameters, read)


def add_event(
    type_: EventType, *, organization_id: UUID, external_id: str, case_id: UUID, now: str, message_id: str | None = None
) -> tuple[Query[None], Query[None]]:
    """Return the query that writes an event at the next position; other writers wait until the transaction ends."""
    about = {"organization_id": organization_id}
    event = {"type": type_, "external_id": external_id, "case_id": case_id, "now": now, "message_id": message_id}
    return (
        Query(_EVENTS["advance_position"], about, _nothing),
        Query(_EVENTS["add_event"], about | event, _nothing),
    )


def prune_events(connection: psycopg.Connection[tuple[Any, ...]], *, before: str) -> int:
    """Remove every organization's events from before a time, and return how many there were.

    Records of removals before that time are deleted, too: a delivery after that brings the row back. Events after the
    first younger one stay, and so does the position up to which events were removed. That position is committed first,
    and visitors wait only for that.
    """
    organizations = connection.execute(
        _PRUNING["list_organizations_with_events_before_everywhere"], {"before": before}
    ).fetchall()
    pruned = 0
    for (organization_id,) in organizations:
        about = {"organization_id": organization_id}
        with connection.transaction():
            connection.execute(_PRUNING["lock_position"], about)
            connection.execute(_PRUNING["note_pruned"], about | {"before": before})
        pruned += connection.execute(_PRUNING["prune_events"], about).rowcount
    connection.execute(_PRUNING["prune_removed_rows_everywhere"], {"before": before})
    return pruned


def _nothing(_: Result) -> None:
    """Read nothing."""

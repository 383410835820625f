"""The queries of conversations: a case's activities and messages, read and written with one statement each.

queries/conversations.sql has the statements of pages in ascending order; the closed table below derives the descending
ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal
from uuid import UUID

from marshmallow import Schema

from cases_service.cases import timestamps as instants
from cases_service.cases.pagination import Collection, Cursor, Position, adjacent_cursors, visitor_tag
from cases_service.cases.schemas import ActivitySchema, Instant, MessageSchema, OrganizationMessageSchema
from cases_service.cases.serialization import Row, RowDump, compile_row_dump
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import Statement, number, numbered, statements
from cases_service.store.page_statements import replaced

Things = Literal["messages", "activities"]

_CONVERSATIONS: Final = numbered("conversations")
_DESCENDING: Final = {
    "(k.created_at, k.id) > (": "(k.created_at, k.id) < (",
    "(k.created_at, k.id) <= (": "(k.created_at, k.id) >= (",
    "order by k.created_at desc, k.id desc": "order by k.created_at, k.id",
    "order by k.created_at, k.id": "order by k.created_at desc, k.id desc",
    "order by key.created_at, key.id": "order by key.created_at desc, key.id desc",
    "order by p.created_at, p.id": "order by p.created_at desc, p.id desc",
}
_PAGES: Final[dict[tuple[Things, bool], str]] = {
    ("messages", True): "list_messages_of_visitor",
    ("activities", True): "list_activities_of_visitor",
    ("messages", False): "list_messages_of_organization",
    ("activities", False): "list_activities_of_organization",
}
_SCHEMAS: Final[dict[tuple[Things, bool], type[Schema]]] = {
    ("messages", True): MessageSchema,
    ("activities", True): ActivitySchema,
    ("messages", False): OrganizationMessageSchema,
    ("activities", False): ActivitySchema,
}
# The columns of a page: the visitor, the case, whether rows lie before the page, and each row's place, id and content.
_FOUND: Final = 1
_HAS_BEFORE: Final = 2
_POSITION: Final = 3
_ID: Final = 4
_FIRST: Final = ("-infinity", UUID(int=0))
_LAST: Final = ("infinity", UUID(int=2**128 - 1))
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a case's activities or messages in the collection's order, and the cursors of the adjacent pages.

    `visitor_id` is the requesting visitor's, and `has_case` tells whether the case exists.
    """

    visitor_id: UUID
    has_case: bool
    results: list[dict[str, Any]]
    next: Cursor | None
    previous: Cursor | None


@dataclass(frozen=True, slots=True)
class FoundCase:
    """An existing visitor, and the requested case if it is one of theirs."""

    case_id: str | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The state that a change of a locked case depends on."""

    now: str
    status: str
    owner_id: str | None
    is_waiting: bool
    unread_message_count: int
    visitor_unread_message_count: int
    latest_messaging_channel: str | None
    channel_priority: int | None
    has_sender: bool


@dataclass(frozen=True, slots=True)
class OpenActivity:
    """An activity that has not ended."""

    id: str
    channel: str
    is_private: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """One side's unread messages: how many, how many after a message, and when that was written."""

    until_at: str | None
    all: int
    remaining: int


def collection(things: Things, *, organization_id: UUID, case_id: UUID | None, ordering: str, of: str) -> Collection:
    """Return the collection that cursors of a case's activities or messages are bound to, for the side `of`."""
    return Collection(organization_id, ordering, f"{things} of {case_id} for the {of}")


def list_things(
    things: Things,
    *,
    organization_id: UUID,
    case_id: UUID | None,
    external_id: str | None,
    ordering: str,
    cursor: Cursor | None,
    page_size: int,
) -> Query[Page | None]:
    """Query a page of a case's activities or messages, as a visitor sees them, or else the organization.

    None if the visitor does not exist, or, for the organization, the case.
    """
    backward = cursor is not None and cursor.backward
    ascending = ordering.startswith("-") == backward
    after, after_id = _boundary(cursor, ascending=ascending)
    kind = things, external_id is not None
    parameters = {
        "organization_id": organization_id,
        "external_id": external_id,
        "case_id": case_id,
        "after": after,
        "after_id": after_id,
        "look_behind": cursor is not None,
        "row_limit": page_size + 1,
    }

    def read(result: Result) -> Page | None:
        if not result.rows:
            return None
        dump = dump_of(_SCHEMAS[kind], result, offset=_ID)
        return _page(result.rows, dump, cursor, ascending=ascending, page_size=page_size)

    return Query(_page_statement(_PAGES[kind], ascending=ascending), parameters, read)


def find_case(*, organization_id: UUID, external_id: str, case_id: UUID | None) -> Query[FoundCase | None]:
    """Query whether a case is a visitor's; None if the visitor does not exist."""

    def read(result: Result) -> FoundCase | None:
        return FoundCase(result.rows[0][1]) if result.rows else None

    return _query(
        "find_case_of_visitor", read, organization_id=organization_id, external_id=external_id, case_id=case_id
    )


def lock_case(*, organization_id: UUID, external_id: str, case_id: UUID) -> Query[bool]:
    """Lock a case against other writers until the transaction ends, and tell whether it is the visitor's."""
    return _query(
        "lock_case_of_visitor",
        lambda result: bool(result.rows),
        organization_id=organization_id,
        external_id=external_id,
        case_id=case_id,
    )


def get_conversation(
    *, organization_id: UUID, case_id: UUID, sender_user_id: str | None = None
) -> Query[Conversation | None]:
    """Query the state that a change of a case depends on, and whether the user exists; None without such a case."""

    def read(result: Result) -> Conversation | None:
        return Conversation(*result.rows[0]) if result.rows else None

    return _query(
        "get_conversation",
        read,
        organization_id=organization_id,
        case_id=case_id,
        sender_user_id=sender_user_id,
    )


def list_open_activities(*, organization_id: UUID, case_id: UUID) -> Query[list[OpenActivity]]:
    """Query each channel's newest activity that has not ended, the newest of all first."""
    return _query(
        "list_open_activities",
        lambda result: [OpenActivity(*row) for row in result.rows],
        organization_id=organization_id,
        case_id=case_id,
    )


def get_message(*, organization_id: UUID, message_id: str) -> Query[dict[str, Any] | None]:
    """Query a message as its organization sees it; None if it does not exist or is not visible."""

    def read(result: Result) -> dict[str, Any] | None:
        found = dump_of(OrganizationMessageSchema, result).dump(result.rows)
        return found[0] if found else None

    return _query("get_message", read, organization_id=organization_id, message_id=message_id)


def count_unread(*, organization_id: UUID, case_id: UUID, sender_type: str, until: str | None) -> Query[Unread]:
    """Query how many messages of one side the other has not read, and how many of them come after a message."""
    return _query(
        "count_unread",
        lambda result: Unread(*result.rows[0]),
        organization_id=organization_id,
        case_id=case_id,
        sender_type=sender_type,
        until=until,
    )


def mark_read(
    *, organization_id: UUID, case_id: UUID, now: str, sender_type: str, until: tuple[str, str] | None = None
) -> Query[None]:
    """Mark one side's messages as read: all, or those up to a time and an id."""
    until_at, until_id = until or _LAST
    return _query(
        "mark_read",
        _nothing,
        organization_id=organization_id,
        case_id=case_id,
        now=now,
        sender_type=sender_type,
        until_at=until_at,
        until_id=until_id,
    )


def add_activity(*, organization_id: UUID, case_id: UUID, activity_id: str, **values: Any) -> Query[None]:
    """Open an activity in a case."""
    return _query(
        "add_activity", _nothing, organization_id=organization_id, case_id=case_id, activity_id=activity_id, **values
    )


def add_message(*, organization_id: UUID, case_id: UUID, message_id: str, **values: Any) -> Query[None]:
    """Add a message to an activity of a case."""
    return _query(
        "add_message", _nothing, organization_id=organization_id, case_id=case_id, message_id=message_id, **values
    )


def count_message(*, organization_id: UUID, activity_id: str, now: str, is_private: bool) -> Query[None]:
    """Count a message, or a note, in its activity."""
    return _query(
        "count_note" if is_private else "count_message",
        _nothing,
        organization_id=organization_id,
        activity_id=activity_id,
        now=now,
    )


def change_conversation(*, organization_id: UUID, case_id: UUID, now: str, values: Mapping[str, Any]) -> Query[None]:
    """Update a case after a change in its conversation."""
    return _query("change_conversation", _nothing, organization_id=organization_id, case_id=case_id, now=now, **values)


def dump_of(schema: type[Schema], result: Result, *, offset: int = 0) -> RowDump:
    """Return a function that turns a result's rows, from a column on, into the API's objects."""
    described = result.pgresult
    names = [(described.fname(index) or b"").decode() for index in range(offset, described.nfields)]
    return _compiled(schema, (*[""] * offset, *names))


@cache
def _compiled(schema: type[Schema], columns: tuple[str, ...]) -> RowDump:
    return compile_row_dump(schema(), columns, converted={Instant: instants.from_postgres})


@cache
def _page_statement(name: str, *, ascending: bool) -> Statement:
    if ascending:
        return _CONVERSATIONS[name]
    return number(f"conversations.{name}_descending", replaced(statements("conversations")[name], _DESCENDING))


def _boundary(cursor: Cursor | None, *, ascending: bool) -> tuple[str, UUID]:
    if cursor is None:
        return _FIRST if ascending else _LAST
    return instants.from_microseconds(cursor.position.microseconds), cursor.position.id


def _page(rows: Sequence[Row], dump: RowDump, cursor: Cursor | None, *, ascending: bool, page_size: int) -> Page:
    """Make a page of rows, which are in the order of the scan, with one more than the page if there is another page."""
    visitor_id = _NOBODY if rows[0][0] is None else UUID(rows[0][0])
    found = [row for row in rows if row[_ID] is not None]
    shown = found[:page_size]
    following, preceding = adjacent_cursors(
        cursor=cursor,
        ends=(_position(shown[0]), _position(shown[-1])) if shown else None,
        has_before=rows[0][_HAS_BEFORE],
        has_after=len(found) > page_size,
        ascending=ascending,
        tag=visitor_tag(visitor_id),
    )
    results = dump.dump(shown[::-1] if cursor is not None and cursor.backward else shown)
    return Page(visitor_id, rows[0][_FOUND] is not None, results, next=following, previous=preceding)


def _position(row: Row) -> Position:
    return Position(row[_POSITION], UUID(row[_ID]))


def _query(name: str, read: Any, **parameters: Any) -> Query[Any]:
    return Query(_CONVERSATIONS[name], parameters, read)


def _nothing(_: Result) -> None:
    """Read nothing."""

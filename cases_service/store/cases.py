"""Knows what requests ask for: one statement each, the organization in every one of them.

A function returns what to ask the database and how to read its answer; `exchange` does the asking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import msgspec

from cases_service.cases import timestamps as instants
from cases_service.cases.filters import Filters, Index
from cases_service.cases.pagination import Cursor, Position, visitor_tag
from cases_service.cases.schemas import CASE_ATTRIBUTES, NESTED_ATTRIBUTES, CaseSchema, Instant
from cases_service.cases.serialization import Row, RowDump, compile_row_dump
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import Statement, numbered

_ACCESS: Final = numbered("access")
_CASES: Final = numbered("cases")
_BY_STATUS: Final = numbered("cases_by_status")
_BY_PRIORITY: Final = numbered("cases_by_priority")
_BY_CHANNEL: Final = numbered("cases_by_channel")
_SUMMARY: Final = numbered("summary")
# The columns of a page: whose it is, what lies before it, and of each case its place, its hashes, and all of it.
_POSITION: Final = 2
_ID: Final = 3
_hashes: Final = itemgetter(slice(4, 10))
_WHOLE: Final = 10
_FIRST: Final = ("-infinity", UUID(int=0))
_LAST: Final = ("infinity", UUID(int=2**128 - 1))

Fields = frozenset[str] | None
"""The attributes of a case that are asked for; None for all."""

ORDERINGS: Final = ("created_at", "-created_at", "updated_at", "-updated_at")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A live signing key: its secret sealed, or its public key in PEM."""

    id: UUID
    algorithm: str
    encrypted_secret: str | None
    public_key: str | None


@dataclass(frozen=True, slots=True)
class Access:
    """What a valid API token opens."""

    organization_id: UUID
    subscription_active: bool
    keys: tuple[StoredKey, ...]
    scopes: frozenset[str]
    user_id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """Some cases of a visitor in the collection's order, and where the pages beside them begin."""

    visitor_id: UUID
    rows: Sequence[Row]
    dump: RowDump
    fields: Fields
    next: Cursor | None
    previous: Cursor | None

    @property
    def cases(self) -> list[dict[str, Any]]:
        """The cases as `CaseSchema` dumps them, where they were asked for whole."""
        return self.dump.dump(self.rows)

    @property
    def represented(self) -> bytes:
        """What stands for the cases: the same bytes for the same cases, whether or not they were asked for whole."""
        pick = _hashes if self.fields is None else self.dump.pick
        return msgspec.msgpack.encode([sorted(self.fields or ()), *map(pick, self.rows)])


@dataclass(frozen=True, slots=True)
class Found:
    """That there is such a visitor, and the case that was asked for where it is one of theirs."""

    case: dict[str, Any] | None


def get_access(*, organization_id: UUID, token_hash: bytes) -> Query[Access | None]:
    """Ask what a token of an organization opens: None where it is unknown, revoked or expired."""

    def read(result: Result) -> Access | None:
        rows = result.rows
        if not rows:
            return None
        keys = tuple(StoredKey(UUID(row[1]), *row[2:5]) for row in rows if row[1] is not None)
        return Access(organization_id, rows[0][0], keys, frozenset(rows[0][5]), UUID(rows[0][6]))

    return Query(_ACCESS["get_access"], {"organization_id": organization_id, "token_hash": token_hash}, read)


def list_cases(
    *,
    organization_id: UUID,
    external_id: str,
    ordering: str,
    filters: Filters,
    fields: Fields,
    cursor: Cursor | None,
    page_size: int,
    whole: bool = True,
) -> Query[Page | None]:
    """Ask for a page of a visitor's cases: None where the visitor does not exist.

    One that is not asked for `whole` costs less, and can be told from another, but not be shown.
    """
    backward = cursor is not None and cursor.backward
    column, ascending = ordering.removeprefix("-"), ordering.startswith("-") == backward
    order = f"{column}_{'ascending' if ascending else 'descending'}"
    after, after_id = _boundary(cursor, column, filters, ascending=ascending)
    furthest, rearmost = _limits(column, filters, ascending=ascending)
    index, alone = filters.index(column)
    parameters = {
        "organization_id": organization_id,
        "external_id": external_id,
        "after": after,
        "after_id": after_id,
        "furthest": furthest,
        "rearmost": rearmost,
        "look_behind": cursor is not None,
        "row_limit": page_size + 1,
        "whole": whole,
        **_wanted(fields),
    }
    if index is not None:
        parameters |= filters.parameters() | {"nothing_else": alone}

    def read(result: Result) -> Page | None:
        if not result.rows:
            return None
        return _page(
            result.rows, _dump(result, _WHOLE, fields), fields, cursor, ascending=ascending, page_size=page_size
        )

    return Query(_page_statement(index, order), parameters, read)


def get_case(*, organization_id: UUID, external_id: str, case_id: UUID | None, fields: Fields) -> Query[Found | None]:
    """Ask for a visitor with one case of theirs: None where the visitor does not exist."""
    parameters = {
        "organization_id": organization_id,
        "external_id": external_id,
        "case_id": case_id,
        **_wanted(fields),
    }

    def read(result: Result) -> Found | None:
        if not result.rows:
            return None
        row = result.rows[0]
        exists = row[2] is not None
        return Found(_dump(result, 1, fields).dump([row])[0] if exists else None)

    return Query(_CASES["get_case"], parameters, read)


def summarize_cases(*, organization_id: UUID, external_id: str, filters: Filters) -> Query[dict[str, Any] | None]:
    """Ask for a visitor's cases in the numbers of `SummarySchema`: None where the visitor does not exist."""
    parameters = {"organization_id": organization_id, "external_id": external_id, **filters.parameters()}
    return Query(_SUMMARY["summarize_cases"], parameters, _summary)


def _summary(result: Result) -> dict[str, Any] | None:
    if not result.rows:
        return None
    total, opened, in_progress, pending, closed, unread, waiting, latest = result.rows[0]
    return {
        "total": total,
        "by_status": {"open": opened, "in_progress": in_progress, "pending": pending, "closed": closed},
        "unread_message_count": unread,
        "waiting_count": waiting,
        "latest_updated_at": None if latest is None else instants.from_postgres(latest),
    }


@lru_cache(maxsize=256)
def _wanted(fields: Fields) -> Mapping[str, bool]:
    """Return which of a case's nested objects have to be looked up."""
    return {f"with_{name}": fields is None or name in fields for name in NESTED_ATTRIBUTES}


def _boundary(cursor: Cursor | None, column: str, filters: Filters, *, ascending: bool) -> tuple[str, UUID]:
    """Return what the page's keys lie behind: the cursor, or the limit of a filter where that is further in."""
    edge = _edge(column, filters, ascending=ascending)
    position = None if cursor is None else cursor.position
    if edge is not None and (position is None or (edge > position if ascending else edge < position)):
        position = edge
    if position is None:
        return _FIRST if ascending else _LAST
    return instants.from_microseconds(position.microseconds), position.id


def _limits(column: str, filters: Filters, *, ascending: bool) -> tuple[str, str]:
    """Return how far the page's keys reach at most, and how far those on the other side of it."""
    since, until = filters.created_range if column == "created_at" else filters.updated_range
    first = "-infinity" if since is None else instants.from_microseconds(since)
    last = "infinity" if until is None else instants.from_microseconds(until - 1)
    return (last, first) if ascending else (first, last)


def _page_statement(index: Index | None, order: str) -> Statement:
    match index:
        case None:
            return _CASES[f"list_by_{order}"]
        case "status":
            return _BY_STATUS[f"list_by_status_and_{order}"]
        case "priority":
            return _BY_PRIORITY[f"list_by_priority_and_{order}"]
        case "channel":
            return _BY_CHANNEL[f"list_by_channel_and_{order}"]


def _edge(column: str, filters: Filters, *, ascending: bool) -> Position | None:
    since, until = filters.created_range if column == "created_at" else filters.updated_range
    if ascending:
        return None if since is None else Position(since, UUID(int=0)).preceding()
    return None if until is None else Position(until, UUID(int=0))


def _page(
    rows: Sequence[Row], dump: RowDump, fields: Fields, cursor: Cursor | None, *, ascending: bool, page_size: int
) -> Page:
    """Cut a page out of rows in the order they were scanned, one more than the page where there are more."""
    visitor_id, has_before = UUID(rows[0][0]), rows[0][1]
    tag = visitor_tag(visitor_id)
    found = [row for row in rows if row[_POSITION] is not None]
    shown = found[:page_size]
    backward = cursor is not None and cursor.backward
    ahead = behind = None
    if len(found) > page_size:
        ahead = Cursor(_position(shown[-1]), backward, tag)
    if has_before and shown:
        behind = Cursor(_position(shown[0]), not backward, tag)
    elif has_before and cursor is not None:
        # The rows of this page have vanished. Nothing lies between the cursor and its neighbour, so that what is
        # behind the neighbour in the other direction is all that is not behind the cursor.
        edge = cursor.position.following() if ascending else cursor.position.preceding()
        behind = Cursor(edge, not backward, tag)
    if backward:
        return Page(visitor_id, shown[::-1], dump, fields, next=behind, previous=ahead)
    return Page(visitor_id, shown, dump, fields, next=ahead, previous=behind)


def _position(row: Row) -> Position:
    return Position(row[_POSITION], UUID(row[_ID]))


def _dump(result: Result, offset: int, fields: Fields) -> RowDump:
    """Return what turns rows of a statement, whose case begins at a column, into the API's form."""
    described = result.pgresult
    # The statements of one offset have the same columns; a migration only ever adds some.
    shape = offset, described.nfields
    if shape not in _columns:
        names = [(described.fname(index) or b"").decode() for index in range(described.nfields)]
        _columns[shape] = (*[""] * offset, *names[offset:])
    return _compiled(_columns[shape], fields)


_columns: Final[dict[tuple[int, int], tuple[str, ...]]] = {}


@lru_cache(maxsize=256)
def _compiled(columns: tuple[str, ...], fields: Fields) -> RowDump:
    only = None if fields is None else [name for name in CASE_ATTRIBUTES if name in fields]
    return compile_row_dump(CaseSchema(only=only), columns, converted={Instant: instants.from_postgres})

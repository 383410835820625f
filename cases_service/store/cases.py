"""The queries of visitors' requests: one statement each, and the organization in every one.

A function returns a statement with its parameters and the function that reads its result; `pipeline` runs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import msgspec

from cases_service.cases import timestamps as instants
from cases_service.cases.filters import Filters
from cases_service.cases.pagination import Cursor, Position, adjacent_cursors, visitor_tag
from cases_service.cases.schemas import CASE_ATTRIBUTES, CaseSchema, Instant
from cases_service.cases.serialization import Row, RowDump, compile_row_dump
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import numbered
from cases_service.store.page_statements import NESTED, Column, PageShape, Rendered, case_statement, page_statement

_ACCESS: Final = numbered("access")
_SUMMARY: Final = numbered("summary")
# The columns of a page: the visitor, the time that orders the case, whether there are cases after the page and, with a
# cursor, before it; last the case's id.
_MOMENT: Final = 1
_ID: Final = -1
# Values that a nested object shares with its case are selected once.
EQUAL: Final = {
    **{f"{name}.id": f"{name}_id" for name in NESTED},
    **{f"{name}.organization_id": "organization_id" for name in NESTED},
}
"""The attributes of nested objects that have no column of their own, and the case's column with the same value."""
_FIRST: Final = ("-infinity", UUID(int=0))
_LAST: Final = ("infinity", UUID(int=2**128 - 1))

Fields = frozenset[str] | None
"""The requested attributes of a case; None for all."""

ORDERINGS: Final = ("created_at", "-created_at", "updated_at", "-updated_at")


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A live signing key: its encrypted secret, or its public key in PEM."""

    id: UUID
    algorithm: str
    encrypted_secret: str | None
    public_key: str | None


@dataclass(frozen=True, slots=True)
class Access:
    """The access that a valid API token gives."""

    organization_id: UUID
    subscription_active: bool
    keys: tuple[StoredKey, ...]
    scopes: frozenset[str]
    user_id: UUID
    token_id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a visitor's cases in the collection's order, and the cursors of the adjacent pages."""

    visitor_id: UUID
    rows: Sequence[Row]
    statement: Rendered
    fields: Fields
    next: Cursor | None
    previous: Cursor | None

    @property
    def cases(self) -> list[dict[str, Any]]:
        """The cases as `CaseSchema` dumps them, if the page was queried `whole`."""
        return _compiled(self.statement.columns, self.fields).dump(self.rows)

    @property
    def etag_input(self) -> bytes:
        """The bytes to compute an ETag from: the same for the same cases, whether queried `whole` or not."""
        columns = self.statement.columns
        pick = _versions(columns) if self.fields is None else _compiled(columns, self.fields).pick
        return msgspec.msgpack.encode([sorted(self.fields or ()), *map(pick, self.rows)])


@dataclass(frozen=True, slots=True)
class Found:
    """An existing visitor, and the requested case if it is one of theirs."""

    case: dict[str, Any] | None


def get_access(*, organization_id: UUID, token_hash: bytes) -> Query[Access | None]:
    """Query a token's access; None if the token is unknown, revoked or expired."""

    def read(result: Result) -> Access | None:
        rows = result.rows
        return _access(organization_id, *((row[:5], tuple(row[5]), row[6:]) for row in rows)) if rows else None

    return Query(_ACCESS["get_access"], {"organization_id": organization_id, "token_hash": token_hash}, read)


@lru_cache(maxsize=256)
def _access(organization_id: UUID, *rows: tuple[Row, tuple[str, ...], Row]) -> Access:
    """Return the access in get_access's rows, in three parts each. It rarely changes: usually the same object."""
    (subscription_active, *_), scopes, ids = rows[0]
    keys = tuple(StoredKey(UUID(row[1]), *row[2:5]) for row, *_ in rows if row[1] is not None)
    return Access(organization_id, subscription_active, keys, frozenset(scopes), *map(UUID, ids))


def get_visitor(*, organization_id: UUID, external_id: str) -> Query[Row | None]:
    """Query the visitor of an external id with all its contacts, to be compared as a whole."""
    parameters = {"organization_id": organization_id, "external_id": external_id}
    return Query(_ACCESS["get_visitor"], parameters, lambda result: result.rows[0] if result.rows else None)


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
    """Query a page of a visitor's cases; None if the visitor does not exist.

    Without `whole` it is cheaper and has an `etag_input`, but no `cases`.
    """
    backward = cursor is not None and cursor.backward
    column: Column = "updated_at" if ordering.endswith("updated_at") else "created_at"
    ascending = ordering.startswith("-") == backward
    after, after_id = _boundary(cursor, column, filters, ascending=ascending)
    furthest, rearmost = _limits(column, filters, ascending=ascending)
    index, alone = filters.index(column)
    shape = PageShape(
        column=column,
        ascending=ascending,
        index=index,
        others=not alone,
        behind=cursor is not None,
        whole=whole,
        versions=fields is None,
        nested=_nested(fields),
    )
    parameters = {
        "organization_id": organization_id,
        "external_id": external_id,
        "after": after,
        "after_id": after_id,
        "furthest": furthest,
        "rearmost": rearmost,
        "row_limit": page_size + 1,
    }
    if index is not None:
        parameters |= filters.parameters()
    statement = page_statement(shape)

    def read(result: Result) -> Page | None:
        if not result.rows:
            return None
        return _page(result.rows, statement, fields, cursor, ascending=ascending)

    return Query(statement, parameters, read)


def get_case(*, organization_id: UUID, external_id: str, case_id: UUID | None, fields: Fields) -> Query[Found | None]:
    """Query a visitor with one of their cases; None if the visitor does not exist."""
    parameters = {"organization_id": organization_id, "external_id": external_id, "case_id": case_id}
    statement = case_statement(_nested(fields))

    def read(result: Result) -> Found | None:
        if not result.rows:
            return None
        exists = result.rows[0][_ID] is not None
        return Found(_compiled(statement.columns, fields).dump(result.rows)[0] if exists else None)

    return Query(statement, parameters, read)


def summarize_cases(*, organization_id: UUID, external_id: str, filters: Filters) -> Query[dict[str, Any] | None]:
    """Query the numbers of `SummarySchema` for a visitor; None if the visitor does not exist."""
    parameters = {"organization_id": organization_id, "external_id": external_id, **filters.parameters()}
    return Query(_SUMMARY["summarize_cases"], parameters, _summary)


def _summary(result: Result) -> dict[str, Any] | None:
    if not result.rows:
        return None
    total, opened, in_progress, pending, closed, unread, waiting, latest, unread_by_visitor = result.rows[0]
    return {
        "total": total,
        "by_status": {"open": opened, "in_progress": in_progress, "pending": pending, "closed": closed},
        "unread_message_count": unread,
        "waiting_count": waiting,
        "latest_updated_at": None if latest is None else instants.from_postgres(latest),
        "visitor_unread_message_count": unread_by_visitor,
    }


def _nested(fields: Fields) -> frozenset[str]:
    """Return the nested objects that the requested attributes need."""
    return NESTED if fields is None else NESTED & fields


def _boundary(cursor: Cursor | None, column: str, filters: Filters, *, ascending: bool) -> tuple[str, UUID]:
    """Return the exclusive start of the page's keys: the cursor, or a filter's limit if that is further in."""
    edge = _edge(column, filters, ascending=ascending)
    position = None if cursor is None else cursor.position
    if edge is not None and (position is None or (edge > position if ascending else edge < position)):
        position = edge
    if position is None:
        return _FIRST if ascending else _LAST
    return instants.from_microseconds(position.microseconds), position.id


def _limits(column: str, filters: Filters, *, ascending: bool) -> tuple[str, str]:
    """Return the farthest limits of the keys: in the page's direction, and in the other."""
    since, until = filters.created_range if column == "created_at" else filters.updated_range
    first = "-infinity" if since is None else instants.from_microseconds(since)
    last = "infinity" if until is None else instants.from_microseconds(until - 1)
    return (last, first) if ascending else (first, last)


def _edge(column: str, filters: Filters, *, ascending: bool) -> Position | None:
    since, until = filters.created_range if column == "created_at" else filters.updated_range
    if ascending:
        return None if since is None else Position(since, UUID(int=0)).preceding()
    return None if until is None else Position(until, UUID(int=0))


def _page(rows: Sequence[Row], statement: Rendered, fields: Fields, cursor: Cursor | None, *, ascending: bool) -> Page:
    """Make a page of a visitor's rows, which are in the order of the scan."""
    visitor_id = UUID(rows[0][0])
    shown = rows if rows[0][_ID] is not None else []
    following, preceding = adjacent_cursors(
        cursor=cursor,
        ends=(_position(shown[0]), _position(shown[-1])) if shown else None,
        has_before=cursor is not None and rows[0][3],
        has_after=rows[0][2],
        ascending=ascending,
        tag=visitor_tag(visitor_id),
    )
    in_order = shown[::-1] if cursor is not None and cursor.backward else shown
    return Page(visitor_id, in_order, statement, fields, next=following, previous=preceding)


def _position(row: Row) -> Position:
    return Position(instants.microseconds_of_postgres(row[_MOMENT]), UUID(row[_ID]))


@lru_cache(maxsize=256)
def _compiled(columns: tuple[str, ...], fields: Fields) -> RowDump:
    """Return the compiled dump of rows with these columns to the requested attributes."""
    only = None if fields is None else [name for name in CASE_ATTRIBUTES if name in fields]
    schema = CaseSchema(only=only)
    return compile_row_dump(schema, columns, converted={Instant: instants.from_postgres}, equal=EQUAL)


@lru_cache(maxsize=256)
def _versions(columns: tuple[str, ...]) -> Callable[[Row], Any]:
    """Return a function that picks from a row the values that identify the state of its case and nested objects.

    Each write of a row gives it a new version, the transaction's number, which nobody can choose. After a restore of an
    earlier state, numbers are used again; then the times of the last change distinguish the states.
    """
    picked = {"id", "updated_at", "contact.updated_at"}
    return itemgetter(*(place for place, name in enumerate(columns) if name in picked or name.endswith("version")))

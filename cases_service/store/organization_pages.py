"""The query for a page of an organization's cases, and the rendering of its statements from their template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final
from uuid import UUID

import msgspec

from cases_service.cases import timestamps as instants
from cases_service.cases.organization_filters import OrganizationFilters, Source
from cases_service.cases.pagination import Cursor, Position, adjacent_cursors
from cases_service.cases.schemas import CASE_ATTRIBUTES, Instant, OrganizationCaseSchema
from cases_service.cases.serialization import Row, RowDump, compile_row_dump
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import templates
from cases_service.store.cases import EQUAL, Fields
from cases_service.store.page_statements import NESTED, Rendered, replaced, variant, with_whole_cases

TAG: Final = b"\0" * 8
"""Takes the place of a visitor's tag in these cursors."""

_TEMPLATES: Final = templates("organization_cases")
_PAGE: Final = _TEMPLATES["list_organization_cases"]
_ONE: Final = _TEMPLATES["get_case_of_organization"]
_DESCENDING: Final = {
    "(c.created_at, c.id) > (": "(c.created_at, c.id) < (",
    "(c.created_at, c.id) <= (": "(c.created_at, c.id) >= (",
    "c.created_at <= :furthest": "c.created_at >= :furthest",
    "c.created_at >= :rearmost": "c.created_at <= :rearmost",
    "order by c.created_at, c.id": "order by c.created_at desc, c.id desc",
    "order by c.created_at desc, c.id desc": "order by c.created_at, c.id",
    **{f"order by {name}.moment, {name}.id": f"order by {name}.moment desc, {name}.id desc" for name in ("key", *"np")},
}
_BY_UPDATE: Final = {
    "c.created_at": "c.updated_at",
    "c.updated_at": "c.created_at",
    ":updated_since": ":created_since",
    ":updated_until": ":created_until",
}
_KEY: Final = "where c.organization_id = :organization_id\n"
_WANTED: Final = "(select null::uuid as id) wanted"
_OF_VISITOR: Final = """(
        select x.id
        from visitors v
        join contacts x on x.organization_id = :organization_id and x.visitor_id = v.id
        where v.organization_id = :organization_id and v.external_id = :external_id::text
    ) wanted"""
_OF_CONTACT: Final = f"{_KEY}            and c.contact_id = wanted.id\n"
_SOURCES: Final[Mapping[Source, Mapping[str, str]]] = {
    "all": {},
    # At most one case has the number, so an index for the order would only mislead the planner.
    "number": {
        _KEY: f"{_KEY}            and c.case_number = :case_number\n",
        "        order by c.created_at, c.id\n        limit": "        limit",
        "            order by c.created_at desc, c.id desc\n            limit": "            limit",
    },
    "contacts": {_WANTED: "unnest(:contact_ids::uuid[]) as wanted (id)", _KEY: _OF_CONTACT},
    "visitor": {_WANTED: _OF_VISITOR, _KEY: _OF_CONTACT, ":external_id::text is null": "true"},
}
"""The sources of keys other than all cases."""


@dataclass(frozen=True, slots=True)
class OrganizationPage:
    """A page of an organization's cases in the collection's order, and the cursors of the adjacent pages."""

    rows: Sequence[Row]
    dump: RowDump
    fields: Fields
    next: Cursor | None
    previous: Cursor | None

    @property
    def cases(self) -> list[dict[str, Any]]:
        """The cases as `OrganizationCaseSchema` dumps them."""
        return self.dump.dump(self.rows)

    @property
    def etag_input(self) -> bytes:
        """The bytes to compute an ETag from: the same for the same cases."""
        return msgspec.msgpack.encode([sorted(self.fields or ()), *map(self.dump.pick, self.rows)])


def list_cases(
    *,
    organization_id: UUID,
    ordering: str,
    filters: OrganizationFilters,
    fields: Fields,
    cursor: Cursor | None,
    page_size: int,
) -> Query[OrganizationPage]:
    """Query a page of an organization's cases."""
    backward = cursor is not None and cursor.backward
    column, ascending = ordering.removeprefix("-"), ordering.startswith("-") == backward
    statement = page_statement(
        filters.source, column, ascending=ascending, nested=NESTED if fields is None else NESTED & fields
    )
    (first, last), position = _edges(filters, column), None if cursor is None else cursor.position
    begin, furthest = (first, last) if ascending else (last, first)
    parameters = {
        **filters.parameters(),
        "organization_id": organization_id,
        **_boundary(begin, position, ascending=ascending),
        "furthest": instants.from_microseconds(furthest),
        "rearmost": instants.from_microseconds(begin),
        "look_behind": cursor is not None,
        "row_limit": page_size + 1,
    }

    def read(result: Result) -> OrganizationPage:
        dump = compiled(statement.columns, fields)
        place = statement.columns.index(column), statement.columns.index("id")
        return _page(result.rows, dump, fields, cursor, place, ascending=ascending)

    return Query(statement, parameters, read)


@cache
def page_statement(source: Source, column: str, *, ascending: bool, nested: frozenset[str]) -> Rendered:
    """Return the statement of a page, which looks up these of the nested objects."""
    text = replaced(_PAGE, _SOURCES[source])
    if not ascending:
        text = replaced(text, _DESCENDING)
    if column == "updated_at":
        text = replaced(text, _BY_UPDATE)
    order = f"{column}_{'ascending' if ascending else 'descending'}"
    return with_whole_cases(f"organization_cases.list_{source}_by_{order}{variant(NESTED - nested)}", text, nested)


@cache
def case_statement() -> Rendered:
    """Return the statement of one case."""
    return with_whole_cases("organization_cases.get_case_of_organization", _ONE, NESTED)


def _edges(filters: OrganizationFilters, column: str) -> tuple[int, int]:
    """Return the first and the last time that a case of the collection can have; infinities without a filter."""
    common = filters.common
    since, until = common.created_range if column == "created_at" else common.updated_range
    return (-_FOREVER if since is None else since), (_FOREVER if until is None else until - 1)


_FOREVER: Final = 2**62


def _boundary(begin: int, position: Position | None, *, ascending: bool) -> dict[str, Any]:
    """Return the exclusive start of the page's keys: the cursor, or a filter's limit if that is further in."""
    edge = Position(begin, UUID(int=0 if ascending else 2**128 - 1))
    edge = edge.preceding() if ascending else edge.following()
    if position is None or (edge > position if ascending else edge < position):
        position = edge
    return {"after": instants.from_microseconds(position.microseconds), "after_id": position.id}


def _page(
    rows: Sequence[Row],
    dump: RowDump,
    fields: Fields,
    cursor: Cursor | None,
    place: tuple[int, int],
    *,
    ascending: bool,
) -> OrganizationPage:
    """Make a page of rows, which are in the order of the scan."""
    shown = rows if rows[0][place[1]] is not None else []
    following, preceding = adjacent_cursors(
        cursor=cursor,
        ends=(_position(shown[0], place), _position(shown[-1], place)) if shown else None,
        has_before=rows[0][0],
        has_after=rows[0][1],
        ascending=ascending,
        tag=TAG,
    )
    in_order = shown[::-1] if cursor is not None and cursor.backward else shown
    return OrganizationPage(in_order, dump, fields, next=following, previous=preceding)


def _position(row: Row, place: tuple[int, int]) -> Position:
    return Position(instants.microseconds_of_postgres(row[place[0]]), UUID(row[place[1]]))


@lru_cache(maxsize=256)
def compiled(columns: tuple[str, ...], fields: Fields = None) -> RowDump:
    """Return the compiled dump of rows with these columns to the requested attributes."""
    only = None if fields is None else [name for name in CASE_ATTRIBUTES if name in fields]
    return compile_row_dump(
        OrganizationCaseSchema(only=only), columns, converted={Instant: instants.from_postgres}, equal=EQUAL
    )

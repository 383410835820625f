"""The query for a page of an organization's cases, and the rendering of its statements from their template."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from cases_service.cases import timestamps as instants
from cases_service.cases.organization_filters import OrganizationFilters, Source
from cases_service.cases.pagination import Cursor, Position
from cases_service.cases.schemas import CASE_ATTRIBUTES, Instant, OrganizationCaseSchema
from cases_service.cases.serialization import Row, RowDump, compile_row_dump
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import Statement, number, statements
from cases_service.store.cases import Fields

TAG: Final = b"\0" * 8
"""Takes the place of a visitor's tag in these cursors."""

_PAGE: Final = statements("organization_page")["list_organization_cases"]
_ONE: Final = statements("writing")["get_case_of_organization"]
_ALIASES: Final = {
    "contact": "contact",
    "owner": "owner",
    "created_by_user": "author",
    "updated_by_user": "editor",
    "case_funnel_stage": "stage",
}
_DESCENDING: Final = {
    "(c.created_at, c.id) > (": "(c.created_at, c.id) < (",
    "(c.created_at, c.id) <= (": "(c.created_at, c.id) >= (",
    "c.created_at <= %(furthest)s": "c.created_at >= %(furthest)s",
    "c.created_at >= %(rearmost)s": "c.created_at <= %(rearmost)s",
    "order by c.created_at, c.id": "order by c.created_at desc, c.id desc",
    "order by c.created_at desc, c.id desc": "order by c.created_at, c.id",
    **{f"order by {name}.moment, {name}.id": f"order by {name}.moment desc, {name}.id desc" for name in ("key", *"np")},
}
_BY_UPDATE: Final = {
    "c.created_at": "c.updated_at",
    "c.updated_at": "c.created_at",
    "%(updated_since)s": "%(created_since)s",
    "%(updated_until)s": "%(created_until)s",
}
_KEY: Final = "where c.organization_id = %(organization_id)s\n"
_WANTED: Final = "(select null::uuid as id) wanted"
_OF_VISITOR: Final = """(
        select x.id
        from visitors v
        join contacts x on x.organization_id = %(organization_id)s and x.visitor_id = v.id
        where v.organization_id = %(organization_id)s and v.external_id = %(external_id)s::text
    ) wanted"""
_OF_CONTACT: Final = f"{_KEY}            and c.contact_id = wanted.id\n"
_SOURCES: Final[Mapping[Source, Mapping[str, str]]] = {
    "all": {},
    # At most one case has the number, so that the order of an index would only lead to the wrong one.
    "number": {
        _KEY: f"{_KEY}            and c.case_number = %(case_number)s\n",
        "        order by c.created_at, c.id\n        limit": "        limit",
        "            order by c.created_at desc, c.id desc\n            limit": "            limit",
    },
    "contacts": {_WANTED: "unnest(%(contact_ids)s::uuid[]) as wanted (id)", _KEY: _OF_CONTACT},
    "visitor": {_WANTED: _OF_VISITOR, _KEY: _OF_CONTACT, "%(external_id)s::text is null": "true"},
}
"""What leads to the keys, in the place of all cases."""


class Rendered(NamedTuple):
    """A statement, and the names of the columns that it returns."""

    statement: Statement
    columns: tuple[str, ...]


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
    rendered = page_statement(filters.source, column, ascending=ascending, nested=_nested(fields))
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
        dump = _compiled(rendered.columns, fields)
        place = rendered.columns.index(column), rendered.columns.index("id")
        return _page(result.rows, dump, fields, cursor, place, ascending=ascending)

    return Query(rendered.statement, parameters, read)


@cache
def page_statement(source: Source, column: str, *, ascending: bool, nested: frozenset[str]) -> Rendered:
    """Return the statement of a page, which looks up these of the nested objects."""
    text = _replaced(_PAGE, _SOURCES[source])
    if not ascending:
        text = _replaced(text, _DESCENDING)
    if column == "updated_at":
        text = _replaced(text, _BY_UPDATE)
    selected, joins = _whole(nested)
    text = text.replace("    c.id\nfrom", f"{selected}\nfrom", 1).replace("c.id = p.id\n", f"c.id = p.id\n{joins}\n", 1)
    order = f"{column}_{'ascending' if ascending else 'descending'}"
    left_out = sum((name not in nested) << bit for bit, name in enumerate(_ALIASES))
    statement = number(f"organization_page.{source}_by_{order}#{left_out:02x}", text)
    return Rendered(statement, ("has_before", "has_after", *_names(selected)))


def _whole(nested: frozenset[str]) -> tuple[str, str]:
    """Return the columns and the joins of one whole case, without those of the nested objects that are not wanted."""
    columns, _, rest = _ONE.partition("\nfrom cases c\n")
    joins, _, _ = rest.partition("\nwhere ")
    unwanted = tuple(alias for name, alias in _ALIASES.items() if name not in nested)
    kept = [line for line in columns.splitlines()[1:] if not line.strip().startswith(tuple(f"{a}." for a in unwanted))]
    joined = [line for line in joins.splitlines() if not any(f" {alias} on " in line for alias in unwanted)]
    return "\n".join(kept), "\n".join(joined)


def _names(selected: str) -> list[str]:
    return re.findall(r'(?m)^    \w+\.(?:\w+ as "(?=[\w.]+"))?([\w.]+)"?,?$', selected)


def _replaced(text: str, table: Mapping[str, str]) -> str:
    """Return a text with each of a table's literals replaced once, the longest that fits first."""
    if not table:
        return text
    literals = sorted(table, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, literals)), lambda match: table[match[0]], text)


@lru_cache(maxsize=256)
def _nested(fields: Fields) -> frozenset[str]:
    return frozenset(_ALIASES) if fields is None else frozenset(_ALIASES) & fields


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
    has_before, has_after = rows[0][:2]
    shown = rows if rows[0][place[1]] is not None else []
    backward = cursor is not None and cursor.backward
    ahead = Cursor(_position(shown[-1], place), backward, TAG) if has_after else None
    behind = None
    if has_before and shown:
        behind = Cursor(_position(shown[0], place), not backward, TAG)
    elif has_before and cursor is not None:
        # The rows of this page have vanished: what lies behind the neighbour is all that is not behind the cursor.
        edge = cursor.position.following() if ascending else cursor.position.preceding()
        behind = Cursor(edge, not backward, TAG)
    if backward:
        return OrganizationPage(shown[::-1], dump, fields, next=behind, previous=ahead)
    return OrganizationPage(shown, dump, fields, next=ahead, previous=behind)


def _position(row: Row, place: tuple[int, int]) -> Position:
    return Position(instants.microseconds_of_postgres(row[place[0]]), UUID(row[place[1]]))


@lru_cache(maxsize=256)
def _compiled(columns: tuple[str, ...], fields: Fields) -> RowDump:
    only = None if fields is None else [name for name in CASE_ATTRIBUTES if name in fields]
    return compile_row_dump(OrganizationCaseSchema(only=only), columns, converted={Instant: instants.from_postgres})

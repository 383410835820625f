"""The statements of a load, made from the templates in queries/loading.sql and the closed tables below."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import msgspec

from cases_service.database.statements import statements
from cases_service.loading.records import RECORDS

_MARK: Final = re.compile(r"\{(\w+)\}")
_SERVER: Final = re.compile(r" *-- (on Citus|elsewhere)$")
_ROW: Final = ("organization_id", "id")


@dataclass(frozen=True, slots=True)
class Table:
    """The table of one type of lines; its columns are in the order of the record's fields."""

    name: str
    columns: tuple[str, ...]
    optional: frozenset[str]
    """The columns that a line may leave out."""

    key: tuple[str, ...] = _ROW
    derived: tuple[str, ...] = ()
    """Further columns that are written but that no line gives."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A field of one type that holds the id of a row of another type."""

    record_type: str
    field: str
    parent_type: str

    @property
    def name(self) -> str:
        """The name of its statements."""
        return f"{TABLES[self.record_type].name}.{self.field}"


def _table(
    record_type: str, name: str, key: tuple[str, ...] = _ROW, derived: tuple[str, ...] = (), **renamed: str
) -> Table:
    fields = msgspec.structs.fields(RECORDS[record_type])
    columns = tuple(renamed.get(field.name, field.name) for field in fields)
    optional = frozenset(column for column, field in zip(columns, fields, strict=True) if not field.required)
    return Table(name, columns, optional - set(key), key, derived)


# Parents come before their children.
TABLES: Final = {
    "organization": _table("organization", "organizations", ("organization_id",), id="organization_id"),
    "user": _table("user", "users"),
    "signing_key": _table("signing_key", "signing_keys", secret="encrypted_secret"),  # noqa: S106  a column
    "visitor": _table("visitor", "visitors"),
    "contact": _table("contact", "contacts"),
    "case_funnel_stage": _table("case_funnel_stage", "case_funnel_stages"),
    "case": _table("case", "cases"),
    "activity": _table("activity", "activities", derived=("is_private",)),
    "message": _table("message", "messages", derived=("case_id",)),
    "event": _table("event", "events", ("organization_id", "position"), event_type="type"),
}
# A wrong line is reported with the first one that does not hold.
REFERENCES: Final = (
    *(Reference(name, "organization_id", "organization") for name in TABLES if name != "organization"),
    *(Reference(name, field, parent) for name, record in RECORDS.items() for field, parent in record.parents.items()),
)
DATED: Final = ("contact", "case")
"""The types with a time of change, so that a line can be stale."""

NAMING_VISITORS: Final = tuple(name for name, table in TABLES.items() if "external_id" in table.columns)
"""The types whose lines name a visitor by external id."""

CONVERSATION: Final = ("activity", "message")
"""The types of a case's contents, which are removed with the case."""

LED_TO_CASE: Final = ("activities.case_id", "messages.activity_id")
"""The references by which contents belong to a case, in the order of CONVERSATION."""

_IF_KNOWN: Final = {"messages": " and counted_in is not null"}
"""What restricts the lines of a table to rows that were stored when that was looked up."""

TIMED: Final = ("contact", "activity")
"""The types whose lines may leave out times."""

_TIME_OF_SNAPSHOT: Final = dict.fromkeys(DATED, "updated_at") | dict.fromkeys(CONVERSATION, "created_at")

UNIQUE_FIELDS: Final = (("case", "case_number"), ("visitor", "external_id"))


def _list(columns: Iterable[str], relation: str = "") -> str:
    return ", ".join(f"{relation}{column}" for column in columns)


def _merged(table: Table) -> Iterator[str]:
    """Yield the expression of each column when several lines are merged; a value that none gives is the last line's."""
    for place, column in enumerate(table.columns):
        last = f"(array_agg({column} order by turn))[1]"
        given = f"(array_agg({column} order by turn) filter (where left_out & {1 << place} = 0))[1]"
        if column in table.key:
            yield column
        else:
            yield f"coalesce({given}, {last})" if column in table.optional else last


def _marks(table: Table) -> dict[str, str]:
    attributes = [column for column in (*table.columns, *table.derived) if column not in table.key]
    optional = [(1 << table.columns.index(column), column) for column in attributes if column in table.optional]
    return {
        "table": table.name,
        "columns": _list(table.columns),
        "written": _list((*table.columns, *table.derived)),
        "key": _list(table.key),
        "last": "place desc",
        "is_new": "removal is not null",
        "staged_is_stored": " and ".join(f"t.{column} = s.{column}" for column in table.key),
        "if_known": _IF_KNOWN.get(table.name, ""),
        "kept": ", ".join(
            f"{column} = case when s.left_out & {bit} <> 0 then t.{column} else s.{column} end"
            for bit, column in optional
        ),
        "merged": _list(_merged(table)),
        "attributes": _list(attributes),
        "stored_attributes": _list(attributes, f"{table.name}."),
        "excluded_attributes": _list(attributes, "excluded."),
    }


_TEMPLATES: Final = statements("loading")


def _filled(template: str, about: str, **marks: str) -> tuple[str, str]:
    return f"{template} {about}", _MARK.sub(lambda mark: marks[mark[1]], _TEMPLATES[template])


def _snapshot_statements() -> Iterator[tuple[str, str]]:
    """Yield the statements that remove the rows that no line names."""
    for name, table in ((name, TABLES[name]) for name, record in RECORDS.items() if record.removable):
        marks = _marks(table) | {"time": "null::timestamptz", "unnamed": "n.id is null"}
        marks["known_columns"] = "t.organization_id, t.id"
        if time := _TIME_OF_SNAPSHOT.get(name):
            newer = f"%(spares_newer)s and t.{time} > coalesce(newest.at, 'infinity')"
            marks |= {"time": time, "unnamed": f"n.id is null and not ({newer})"}
            marks["known_columns"] += f", t.{time}"
        for template in ("remember_named", "count_unnamed", "stage_unnamed"):
            yield _filled(template, table.name, **marks)


def _statements() -> Iterator[tuple[str, str]]:
    """Yield each finished statement under the name of its template and its subject."""
    yield from ((name, text) for name, text in _TEMPLATES.items() if not _MARK.search(text))
    for table in TABLES.values():
        templates = (*_FOR_EACH_TABLE, *(("fill_left_out",) if table.optional else ()))
        yield from (_filled(template, table.name, **_marks(table)) for template in templates)
    yield from _dated_statements()
    for name, template in product(TIMED, ("fill_times", "fill_new_times")):
        yield _filled(template, TABLES[name].name, **_marks(TABLES[name]))
    yield _filled("write_new", "messages", **_marks(TABLES["message"]))
    for name, template in product(CONVERSATION, ("skip_taken_along", "skip_found_late")):
        yield _filled(template, TABLES[name].name, **_marks(TABLES[name]))
    yield from _snapshot_statements()
    for reference in REFERENCES:
        parent = TABLES[reference.parent_type]
        marks = {"table": TABLES[reference.record_type].name, "field": reference.field}
        marks |= {"parent": parent.name, "parent_id": parent.key[-1], "parent_key": _list(parent.key, "p.")}
        yield from (_filled(template, reference.name, **marks) for template in _FOR_EACH_REFERENCE)
        if reference.name in LED_TO_CASE:
            yield _filled("find_late", reference.name, **marks, parent_type=reference.parent_type)
    for table in map(TABLES.__getitem__, NAMING_VISITORS):
        yield _filled("list_external_ids", table.name, table=table.name)
    for record_type, field in UNIQUE_FIELDS:
        table = TABLES[record_type]
        for template in ("find_repeated", "list_repeated", "remember_holders", "exclude_repeated", "index_claims"):
            yield _filled(template, f"{table.name}.{field}", table=table.name, field=field)


def _dated_statements() -> Iterator[tuple[str, str]]:
    """Yield the statements for types with a time of change: the newest of their lines may count, not the last."""
    for name in DATED:
        table = TABLES[name]
        marks = _marks(table) | {"type": name}
        yield from (_filled(template, table.name, **marks) for template in _FOR_EACH_DATED)
        # At the same time the row wins over its removal, in whatever order the two lines arrive.
        newest = marks | {"last": "updated_at desc nulls first, (updated_at is not null and deleted), place desc"}
        yield _filled("skip_late", table.name, **newest)
        for template, own in _OF_NEWEST:
            yield f"{own} {table.name}", _filled(template, table.name, **newest)[1]


_FOR_EACH_TABLE: Final = (
    "create_staging",
    "copy",
    "analyze_staging",
    "merge_lines",
    "keep_last_lines",
    "exclude_wrong_last",
    "index_staging",
    "exclude_lines",
    "write",
    "remove",
    "is_analyze_due",
    "analyze",
)
_OF_NEWEST: Final = (
    ("merge_lines", "merge_newest"),
    ("keep_last_lines", "keep_newest"),
    ("exclude_wrong_last", "exclude_wrong_newest"),
)
_FOR_EACH_DATED: Final = ("lock_rows", "skip_stale", "skip_removed", "remember_removed")
_FOR_EACH_REFERENCE: Final = (
    "find_without_parent",
    "find_still_needed",
    "exclude_without_parent",
    "exclude_still_needed",
)
# Nothing removes a user, a signing key, an organization or an event; a key is written only in part, an existing event
# never; and a case's activities are removed with it.
_WITHOUT_CALLER: Final = {
    "write signing_keys",
    "write events",
    *(f"remove {name}" for name in ("organizations", "users", "signing_keys", "events")),
    *(f"{template} activities.case_id" for template in ("find_still_needed", "exclude_still_needed")),
    *(
        f"{template} {r.name}"
        for template in ("find_still_needed", "exclude_still_needed")
        for r in REFERENCES
        if not RECORDS[r.parent_type].removable
    ),
}
_WRITTEN: Final = {name: text for name, text in _statements() if name not in _WITHOUT_CALLER}


def _for_server(text: str, place: str) -> str:
    """Return the lines of a statement for all servers, and those for this kind of server, without the marks."""
    lines = [(_SERVER.sub("", line), _SERVER.search(line)) for line in text.splitlines()]
    return "\n".join(line for line, mark in lines if mark is None or mark[1] == place)


STATEMENTS: Final = {name: _for_server(text, "elsewhere") for name, text in _WRITTEN.items()}
STATEMENTS_ON_CITUS: Final = {name: _for_server(text, "on Citus") for name, text in _WRITTEN.items()}

if __name__ == "__main__":
    for name, text in (STATEMENTS_ON_CITUS if sys.argv[1:] == ["citus"] else STATEMENTS).items():
        print(f"-- {name}\n{text}\n")  # noqa: T201

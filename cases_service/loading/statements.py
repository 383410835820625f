"""The statements of a load, made from the templates in queries/loading.sql and the closed tables below."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cases_service.database.statements import statements
from cases_service.loading.records import RECORDS

_MARK: Final = re.compile(r"\{(\w+)\}")
_ROW: Final = ("organization_id", "id")


@dataclass(frozen=True, slots=True)
class Table:
    """The table that lines of one type are for; its columns are in the order of the record's fields."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...] = _ROW


@dataclass(frozen=True, slots=True)
class Reference:
    """A field of one type that holds the id of a row of another one."""

    record_type: str
    field: str
    parent_type: str

    @property
    def name(self) -> str:
        """What statements about it are called after."""
        return f"{TABLES[self.record_type].name}.{self.field}"


def _table(record_type: str, name: str, key: tuple[str, ...] = _ROW, **renamed: str) -> Table:
    return Table(name, tuple(renamed.get(field, field) for field in RECORDS[record_type].__struct_fields__), key)


# Parents come before their children.
TABLES: Final = {
    "organization": _table("organization", "organizations", ("organization_id",), id="organization_id"),
    "user": _table("user", "users"),
    "signing_key": _table("signing_key", "signing_keys", secret="encrypted_secret"),  # noqa: S106  a column
    "visitor": _table("visitor", "visitors"),
    "contact": _table("contact", "contacts"),
    "case_funnel_stage": _table("case_funnel_stage", "case_funnel_stages"),
    "case": _table("case", "cases"),
}
# The first one that does not hold is what a wrong line is told.
REFERENCES: Final = (
    *(Reference(name, "organization_id", "organization") for name in TABLES if name != "organization"),
    Reference("contact", "visitor_id", "visitor"),
    Reference("case", "contact_id", "contact"),
    Reference("case", "owner_id", "user"),
    Reference("case", "created_by_user_id", "user"),
    Reference("case", "updated_by_user_id", "user"),
    Reference("case", "case_funnel_stage_id", "case_funnel_stage"),
)
UNIQUE_FIELDS: Final = (("case", "case_number"), ("visitor", "external_id"))


def _list(columns: Iterable[str], relation: str = "") -> str:
    return ", ".join(f"{relation}{column}" for column in columns)


def _marks(table: Table) -> dict[str, str]:
    attributes = [column for column in table.columns if column not in table.key]
    return {
        "table": table.name,
        "columns": _list(table.columns),
        "key": _list(table.key),
        "earlier_is_last": " and ".join(f"earlier.{column} = last.{column}" for column in table.key),
        "attributes": _list(attributes),
        "stored_attributes": _list(attributes, f"{table.name}."),
        "excluded_attributes": _list(attributes, "excluded."),
    }


def _statements() -> Iterator[tuple[str, str]]:
    """Yield each finished statement under the name of its template and what it is about."""
    templates = statements("loading")

    def filled(template: str, about: str, **marks: str) -> tuple[str, str]:
        return f"{template} {about}", _MARK.sub(lambda mark: marks[mark[1]], templates[template])

    yield from ((name, text) for name, text in templates.items() if not _MARK.search(text))
    for table in TABLES.values():
        for template in ("create_staging", "copy", "keep_last_lines", "write", "remove", "analyze"):
            yield filled(template, table.name, **_marks(table))
    for reference in REFERENCES:
        parent = TABLES[reference.parent_type]
        marks = {"table": TABLES[reference.record_type].name, "field": reference.field}
        marks |= {"parent": parent.name, "parent_id": parent.key[-1]}
        for template in ("find_without_parent", "find_still_needed"):
            yield filled(template, reference.name, **marks)
    for record_type, field in UNIQUE_FIELDS:
        table = TABLES[record_type]
        yield filled("find_repeated", f"{table.name}.{field}", table=table.name, field=field)


# Nothing removes a user, a signing key or an organization; and of a key not all is written.
_WITHOUT_CALLER: Final = {
    "write signing_keys",
    *(f"remove {name}" for name in ("organizations", "users", "signing_keys")),
    *(f"find_still_needed {r.name}" for r in REFERENCES if not RECORDS[r.parent_type].removable),
}
STATEMENTS: Final = {name: text for name, text in _statements() if name not in _WITHOUT_CALLER}

if __name__ == "__main__":
    for name, text in STATEMENTS.items():
        print(f"-- {name}\n{text}\n")  # noqa: T201

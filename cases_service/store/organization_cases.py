"""The queries that read and write one case for its organization, with one statement each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from cases_service.cases.schemas import OrganizationCaseSchema
from cases_service.cases.strong_etag import tag_of
from cases_service.database.pipeline import Query, Result, Row
from cases_service.database.statements import numbered
from cases_service.store.organization_pages import case_statement, compiled

_WRITING: Final = numbered("writing")

REFERENCES: Final = {
    "contact_id": "cases_contact_fk",
    "owner_id": "cases_owner_fk",
    "created_by_user_id": "cases_created_by_user_fk",
    "updated_by_user_id": "cases_updated_by_user_fk",
    "case_funnel_stage_id": "cases_funnel_stage_fk",
}
"""The references of a case: each column, in the order of `check_case`, and its constraint."""


@dataclass(frozen=True)
class StoredCase:
    """A case of the organization: its row, with its nested objects."""

    row: Row
    columns: tuple[str, ...]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The case as its organization sees it."""
        return compiled(self.columns).dump([self.row])[0]

    @property
    def tag(self) -> str:
        """Its ETag."""
        return tag_of(self.row)

    def values(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the values of columns of `cases`."""
        return dict(zip(names, _getter(self.columns, names)(self.row), strict=True))


@dataclass(frozen=True, slots=True)
class Situation:
    """The state that a change finds: its transaction's time, the case with its number, and missing references."""

    now: str
    holder_id: str | None
    missing: frozenset[str]


def get_case(*, organization_id: UUID, case_id: UUID | None) -> Query[StoredCase | None]:
    """Query a case of the organization with its nested objects; None if there is no such case."""

    def read(result: Result) -> StoredCase | None:
        if not result.rows:
            return None
        (row,) = result.rows
        return StoredCase(row, statement.columns)

    statement = case_statement()
    return Query(statement, {"organization_id": organization_id, "case_id": case_id}, read)


def lock_case(*, organization_id: UUID, case_id: UUID | None) -> Query[bool]:
    """Lock a case until the transaction ends, and tell whether it exists."""
    return _query("lock_case", _has_row, organization_id=organization_id, case_id=case_id)


def check_case(*, organization_id: UUID, case_id: UUID | None, values: Mapping[str, Any]) -> Query[Situation]:
    """Query the conflicts of values for a case, or for a new one without an id."""
    asked = {name: values.get(name) for name in REFERENCES}

    def read(result: Result) -> Situation:
        now, holder_id, *found = result.rows[0]
        absent = (name for name, is_there in zip(REFERENCES, found, strict=True) if not is_there)
        return Situation(now, holder_id, frozenset(name for name in absent if asked[name] is not None))

    number = values.get("case_number")
    return _query("check_case", read, organization_id=organization_id, case_id=case_id, case_number=number, **asked)


def add_case(*, organization_id: UUID, case_id: UUID | None, now: str, values: Mapping[str, Any]) -> Query[bool]:
    """Create a case, and tell whether its id was still free."""
    return _query("add_case", _has_row, organization_id=organization_id, case_id=case_id, now=now, **values)


def change_case(*, organization_id: UUID, case_id: UUID | None, now: str, values: Mapping[str, Any]) -> Query[None]:
    """Write all writable columns of a case."""
    return _query("change_case", _nothing, organization_id=organization_id, case_id=case_id, now=now, **values)


def remove_case(*, organization_id: UUID, case_id: UUID | None) -> Query[bool]:
    """Remove a case, and tell whether it existed."""
    return _query("remove_case", _has_row, organization_id=organization_id, case_id=case_id)


@lru_cache(maxsize=256)
def only(fields: frozenset[str]) -> tuple[str, ...]:
    """Return attributes in their order in an answer."""
    return tuple(name for name in OrganizationCaseSchema().fields if name in fields)


@lru_cache(maxsize=16)
def _getter(columns: tuple[str, ...], names: tuple[str, ...]) -> Callable[[Row], Row]:
    return itemgetter(*map(columns.index, names))


def _query(name: str, read: Any, **parameters: Any) -> Query[Any]:
    return Query(_WRITING[name], parameters, read)


def _has_row(result: Result) -> bool:
    return bool(result.rows)


def _nothing(_: Result) -> None:
    """Read nothing."""

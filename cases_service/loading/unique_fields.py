"""Case numbers and visitors' external ids: each belongs to one row of an organization."""

from collections.abc import Iterator, Sequence
from typing import Final

import psycopg

from cases_service.loading.line_errors import Fault
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import TABLES, UNIQUE_FIELDS

_REPEATED: Final = {
    "cases.case_number": "another case of the organization has this number",
    "visitors.external_id": "another visitor of the organization has this identity",
}
_CHECKS: Final = {"case_number": "check_case_numbers", "external_id": "check_external_ids"}


class UniqueField:
    """A field of which no two rows of an organization have the same value."""

    def __init__(self, session: LoadSession, record_type: str, name: str) -> None:
        self.column = f"{TABLES[record_type].name}.{name}"
        self.fault = Fault(name, _REPEATED[self.column])
        self._session = session
        self._check = _CHECKS[name]

    def index_lines(self) -> None:
        """Make lines quick to find by their values."""
        self._session.execute(f"index_claims {self.column}")

    def exclude_repeated(self) -> list[int]:
        """Exclude the lines whose value belongs to another row or line, and return their places."""
        if self._session.is_on_citus:
            self._session.execute(f"remember_holders {self.column}")
        return self._session.exclude(f"exclude_repeated {self.column}")

    def holds(self) -> bool:
        """Tell whether no two written rows have the same value, as far as the server can be asked."""
        if self._session.is_on_citus:
            # Its nodes check at the commit.
            return False
        try:
            with self._session.savepoint():
                self._session.execute(self._check)
        except psycopg.errors.UniqueViolation:
            return False
        return True

    def find_repeated(self) -> int | None:
        """Return the place of the first line whose value another row has, too."""
        return self._session.find_place(f"find_repeated {self.column}")

    def list_repeated(self) -> list[int]:
        """Return the places of all lines whose value another row has, too."""
        return self._session.list_places(f"list_repeated {self.column}")


def unique_fields(session: LoadSession, staged_types: Sequence[str]) -> Iterator[UniqueField]:
    """Yield the unique fields of some types."""
    for record_type, name in UNIQUE_FIELDS:
        if record_type in staged_types:
            yield UniqueField(session, record_type, name)

"""The visitors that organizations have erased, known only by a keyed hash of the external id."""

import hmac
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from cases_service.database.statements import statements
from cases_service.loading.line_errors import Fault
from cases_service.loading.session import LoadSession
from cases_service.loading.statements import NAMING_VISITORS, TABLES

KEY_BYTES: Final = 32
"""The length of an organization's key."""

ERASED: Final = Fault(
    "external_id",
    "erased: the organization has erased this visitor, whom cases-service allow-visitor would let back in",
)

_SQL: Final = statements("personal_data")


def hash_external_id(external_id: str, *, key: bytes) -> bytes:
    """Return the HMAC-SHA256 of an external id's UTF-8 bytes, with the key of its organization."""
    return hmac.digest(key, external_id.encode(), "sha256")


class ErasedVisitors:
    """The visitors that some organizations have erased and not allowed again."""

    def __init__(self, connection: psycopg.Connection[Any], organizations: Collection[str]) -> None:
        self._keys: dict[str, bytes] = {}
        self._hashes: defaultdict[str, set[bytes]] = defaultdict(set)
        cursor = connection.cursor(row_factory=tuple_row)
        parameters = {"organizations": list(organizations)}
        for organization_id, key, hashed in cursor.execute(_SQL["list_erased_everywhere"], parameters, prepare=False):
            self._keys[organization_id] = key
            self._hashes[organization_id].add(hashed)

    @property
    def organizations(self) -> list[str]:
        """The organizations that have erased a visitor, as UUIDs in lower case."""
        return list(self._keys)

    def include(self, organization_id: str, external_id: str) -> bool:
        """Tell whether an organization has erased the visitor with this external id."""
        key = self._keys.get(organization_id)
        return key is not None and hash_external_id(external_id, key=key) in self._hashes[organization_id]


def find_erased_lines(
    session: LoadSession, staged_types: Sequence[str], *, organizations: Collection[str]
) -> dict[str, list[int]]:
    """Return the places of the lines about erased visitors, by type. From here on, no erasure can run."""
    named = [record_type for record_type in NAMING_VISITORS if record_type in staged_types]
    if not named:
        return {}
    erased = ErasedVisitors(session.connection, organizations)
    found: dict[str, list[int]] = {}
    for record_type in named if erased.organizations else ():
        given = {"organizations": erased.organizations}
        with session.rows(f"list_external_ids {TABLES[record_type].name}", **given) as rows:
            found[record_type] = [place for place, *whom in rows if erased.include(*whom)]
    return found

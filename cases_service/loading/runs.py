"""Records what each load and each import of an organization came to."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from cases_service.database.statements import statements

_SQL: Final = statements("import_runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a load or an import came to for one organization: rows written and removed, lines stale and wrong.

    These are None where they were not counted apart from those of other organizations.
    """

    organization_id: UUID
    source: str
    """`load` or `import`."""
    api_token_id: UUID | None = None
    is_stored: bool = True
    """Whether what was right is stored; False where the whole was refused."""
    lines: int
    written: int | None = None
    removed: int | None = None
    stale: int | None = None
    wrong: int | None = None
    duration_ms: int


def list_existing(connection: psycopg.Connection[Any], organization_ids: Iterable[UUID]) -> list[UUID]:
    """Return those of some organizations that there are: a load may remove rows of one that there is not."""
    cursor = connection.cursor(row_factory=tuple_row)
    parameters = {"organization_ids": list(organization_ids)}
    return [found for (found,) in cursor.execute(_SQL["list_existing"], parameters, prepare=False).fetchall()]


def begin(connection: psycopg.Connection[Any]) -> None:
    """Make a transaction that has just begun one that runs can be recorded in."""
    connection.execute(_SQL["begin"], prepare=False)


def record_run(connection: psycopg.Connection[Any], run: Run) -> None:
    """Leave a run behind, in the transaction that the connection is in (read committed), and forget what is too old."""
    connection.execute(_SQL["forget_old_runs"], {"organization_id": run.organization_id}, prepare=False)
    connection.execute(_SQL["add_import_run"], asdict(run), prepare=False)

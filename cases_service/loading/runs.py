"""Records the result of each load and each import of an organization."""

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
    """The result of a load or import for one organization: rows written and removed, lines stale and wrong."""

    organization_id: UUID
    source: str
    """`load` or `import`."""
    api_token_id: UUID | None = None
    is_stored: bool = True
    """Whether the right lines are stored; False if the whole run was refused."""
    lines: int
    written: int = 0
    removed: int = 0
    stale: int = 0
    wrong: int = 0
    duration_ms: int


def list_existing(connection: psycopg.Connection[Any], organization_ids: Iterable[UUID]) -> list[UUID]:
    """Return the organizations that exist: a load may remove rows of one that does not."""
    cursor = connection.cursor(row_factory=tuple_row)
    parameters = {"organization_ids": list(organization_ids)}
    return [found for (found,) in cursor.execute(_SQL["list_existing"], parameters, prepare=False).fetchall()]


def begin(connection: psycopg.Connection[Any]) -> None:
    """Prepare a transaction that has just begun for recording runs."""
    connection.execute(_SQL["begin"], prepare=False)


def record_run(connection: psycopg.Connection[Any], run: Run) -> None:
    """Record a run in the current transaction (read committed), and delete runs that are too old."""
    connection.execute(_SQL["forget_old_runs"], {"organization_id": run.organization_id}, prepare=False)
    connection.execute(_SQL["add_import_run"], asdict(run), prepare=False)

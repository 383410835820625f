"""Records what each load and each import of an organization came to."""

from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from cases_service.database.statements import statements

_SQL: Final = statements("import_runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a load or an import came to for one organization: rows written and removed, lines stale and wrong."""

    organization_id: UUID
    source: str
    """`load` or `import`."""
    api_token_id: UUID | None = None
    is_stored: bool = True
    """Whether what was right is stored; False where the whole was refused."""
    lines: int
    written: int = 0
    removed: int = 0
    stale: int = 0
    wrong: int = 0
    duration_ms: int


def record_run(connection: psycopg.Connection[Any], run: Run) -> None:
    """Leave a run behind, in the transaction that the connection is in, and forget what is too old."""
    # Two that forget the same rows at once would fail in a transaction that keeps its snapshot: this is for one that
    # does not (read committed).
    connection.execute(_SQL["add_import_run"], asdict(run), prepare=False)

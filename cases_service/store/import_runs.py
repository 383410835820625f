"""The queries of an organization's loads and imports, with one statement each."""

from typing import Any, Final
from uuid import UUID

from cases_service.cases import timestamps as instants
from cases_service.cases.schemas import ImportRunSchema, Instant
from cases_service.cases.serialization import RowDump, compile_row_dump
from cases_service.database.connection import Connection
from cases_service.database.pipeline import Query, Result
from cases_service.database.statements import numbered, statements

_NUMBERED: Final = numbered("import_runs")
_SQL: Final = statements("import_runs")
_COLUMNS: Final = (
    "id", "finished_at", "source", "api_token_id", "is_stored", "lines", "written", "removed", "stale", "wrong",
    "duration_ms",
)  # fmt: skip
_DUMP: Final[RowDump] = compile_row_dump(ImportRunSchema(), _COLUMNS, converted={Instant: instants.from_postgres})


def list_runs(*, organization_id: UUID, page_size: int) -> Query[list[dict[str, Any]]]:
    """Query an organization's latest loads and imports, newest first, as `ImportRunSchema` dumps them."""
    parameters = {"organization_id": organization_id, "page_size": page_size}
    return Query(_NUMBERED["list_import_runs"], parameters, _runs)


def _runs(result: Result) -> list[dict[str, Any]]:
    return _DUMP.dump(result.rows)


def count_late_feeds(connection: Connection) -> int:
    """Return how many organizations have a formerly regular feed that has stopped."""
    row = connection.execute(_SQL["count_late_feeds"]).fetchone()
    return 0 if row is None else int(row[0])

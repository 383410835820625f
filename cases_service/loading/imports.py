"""Loads the lines of one request for one organization, as the role that writes for the service."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final
from uuid import UUID

from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.fair_turns import Whose
from cases_service.database.transaction import Transaction
from cases_service.loading.outcome import LoadError, LoadOptions, LoadSummary
from cases_service.loading.runs import Run, begin, record_run
from cases_service.loading.staged_load import Load
from cases_service.problems import UnavailableError

MAXIMUM_LINES: Final = 20_000
"""The maximum number of lines of an import."""

IMPORT_SECONDS: Final = 30.0
"""The time limit of an import, including its wait for another one of the organization."""

_SOURCE: Final = "import"


def import_lines(database: Database, body: bytes, options: LoadOptions, *, api_token_id: UUID) -> LoadSummary:
    """Store lines for the organization in the options. In mode `all`, one wrong line means that nothing is stored.

    The result is recorded under the id of the request's API token.

    Raises:
        ProblemError: As `Database.change` raises, and OutcomeUnknownError if the connection dies before the server has
            confirmed the commit. The import may be repeated then.

    """
    organization_id = options.organization_id
    assert organization_id is not None  # noqa: S101  for the type checker
    work = _Import(body, options, organization_id, api_token_id, started=monotonic())
    try:
        return database.change(work.store, whose=Whose(organization_id))
    except LoadError as error:
        raise UnavailableError(f"Nothing was stored: {error.reason}.") from None


@dataclass(frozen=True, slots=True)
class _Import:
    """The lines of a request, and what its record says of it."""

    body: bytes
    options: LoadOptions
    organization_id: UUID
    api_token_id: UUID
    started: float

    def store(self, connection: Connection) -> LoadSummary:
        """Store the lines with their record; if that is refused, only record it."""
        connection.answer_timeout = connection.exchange.answer_timeout = IMPORT_SECONDS + 1
        with Transaction(connection, self.organization_id, notes=True) as transaction:
            transaction.begin()
            lines = Load.of_request(connection, self.options, deadline=monotonic() + IMPORT_SECONDS)
            lines.stage(_SOURCE, _lines(self.body))
            summary = lines.write()
            if not (summary.error_count and self.options.mode == "all"):
                record_run(connection, self._run(summary, is_stored=True))
                transaction.commit()
                return summary
        with Transaction(connection, self.organization_id) as transaction:
            transaction.begin()
            begin(connection)
            record_run(connection, self._run(summary, is_stored=False))
            transaction.commit()
        return summary

    def _run(self, summary: LoadSummary, *, is_stored: bool) -> Run:
        return Run(
            organization_id=self.organization_id,
            source="import",
            api_token_id=self.api_token_id,
            is_stored=is_stored,
            lines=summary.lines,
            written=sum(summary.written.values()) if is_stored else 0,
            removed=sum(summary.removed.values()) if is_stored else 0,
            stale=summary.stale,
            wrong=summary.error_count,
            duration_ms=round((monotonic() - self.started) * 1000),
        )


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines, each with its number."""
    for number, line in enumerate(body.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield number, line

"""Reads lines and copies them into staging tables, one for each type, which end with the transaction."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.files import MAXIMUM_LINE_BYTES
from cases_service.loading.line_errors import Fault, LineErrors, Sources
from cases_service.loading.outcome import LoadError, LoadOptions
from cases_service.loading.records import (
    RECORDS,
    FieldError,
    Record,
    Removal,
    SigningKey,
    left_out,
    organization_in,
    organization_of,
    read_record,
    values,
)
from cases_service.loading.session import LoadSession
from cases_service.loading.signing_keys import encrypt_secret
from cases_service.loading.statements import CONVERSATION, TABLES

_BATCH_BYTES: Final = 2**20
_TYPES: Final = {record: record_type for record_type, record in RECORDS.items()}


class Staging:
    """The lines of a load on their way into the staging tables.

    Attributes:
        sources: Where the lines come from.
        errors: What is wrong with them, in mode `each`.
        lines: How many there are.
        organizations: How many right lines name each organization.
        refused: How many lines that were wrong as they were read name each organization.
        conversing: The organizations that have lines about contents of cases, by type.

    """

    def __init__(self, session: LoadSession, *, box: SecretBox, options: LoadOptions) -> None:
        self.sources = Sources()
        self.errors = LineErrors(options.maximum_errors)
        self.lines = 0
        self.organizations: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.conversing: dict[str, set[str]] = {record_type: set() for record_type in CONVERSATION}
        self._session = session
        self._box = box
        self._options = options
        self._reading = options.reading
        self._staged: set[str] = set()
        self._batch: dict[str, list[tuple[Any, ...]]] = {record_type: [] for record_type in TABLES}
        self._batch_bytes = 0

    @property
    def types(self) -> list[str]:
        """The staged types, parents first."""
        return [record_type for record_type in TABLES if record_type in self._staged]

    @property
    def has_conversations(self) -> bool:
        """Whether contents of cases are staged."""
        return not self._staged.isdisjoint(CONVERSATION)

    def stage(self, source: str, lines: Iterable[tuple[int, bytes]]) -> None:
        """Check every line, with its number, and copy it into the staging table of its type.

        Raises:
            LoadError: A line is wrong in mode `all`.

        """
        first_place = self.sources.add(source)
        for number, line in lines:
            self.lines += 1
            try:
                if len(line) > MAXIMUM_LINE_BYTES:
                    raise FieldError(None, f"longer than {MAXIMUM_LINE_BYTES // 2**20} MiB")  # noqa: TRY301
                self._add(first_place | number, read_record(line, self._reading), size=len(line))
            except FieldError as error:
                if self._options.mode == "all":
                    raise LoadError(source, number, error.field, error.reason) from None
                self._refuse(first_place | number, line, error)
        self._flush()

    def create_table(self, record_type: str) -> None:
        """Create the staging table of a type if it does not exist: few loads have all types."""
        if record_type not in self._staged:
            self._session.execute(f"create_staging {TABLES[record_type].name}")
            self._staged.add(record_type)

    def _refuse(self, place: int, line: bytes, error: FieldError) -> None:
        organization_id = self._reading.organization_id or organization_in(line)
        if organization_id is not None:
            self.refused[organization_id] += 1
        self.errors.add(place, Fault(error.field, error.reason), organization_id=organization_id)

    def _add(self, place: int, record: Record | Removal, *, size: int) -> None:
        if isinstance(record, SigningKey):
            encrypt_secret(record, self._box)
        record_type, row = _row(record, keeps_left_out=self._options.keeps_left_out)
        self._batch[record_type].append((place, *row))
        self._batch_bytes += size
        self.organizations[organization_of(record)] += 1
        if record_type in self.conversing:
            self.conversing[record_type].add(organization_of(record))
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        for record_type, rows in self._batch.items():
            if rows:
                self.create_table(record_type)
                with self._session.copy(f"copy {TABLES[record_type].name}") as copy:
                    for row in rows:
                        copy.write_row(row)
                rows.clear()
        self._batch_bytes = 0


def _row(record: Record | Removal, *, keeps_left_out: bool) -> tuple[str, tuple[Any, ...]]:
    """Return the type of a line, and its staged columns after its place."""
    if isinstance(record, Removal):
        held = {"id": record.id, "organization_id": record.organization_id, "updated_at": record.updated_at or None}
        return record.type, (True, 0, *map(held.get, TABLES[record.type].columns))
    absent = left_out(record) if keeps_left_out else 0
    return _TYPES[type(record)], (False, absent, *values(record))

"""Loads lines of the load format into the database: all of them or, with an error that names a line, none."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import psycopg
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from psycopg.rows import tuple_row

from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS
from cases_service.database.migrations import DEFAULT_WAIT, become_owner, list_holders, lock_timeout
from cases_service.loading.records import RECORDS, FieldError, Record, Removal, SigningKey, read_record, values
from cases_service.loading.statements import REFERENCES, STATEMENTS, TABLES, Reference

# Enough for every text at its bound, written in escapes throughout.
MAXIMUM_LINE_BYTES: Final = 2**20

_SQL: Final = {name: text.encode() for name, text in STATEMENTS.items()}
_BATCH_BYTES: Final = 2**20
_LINE_BITS: Final = 40


class LineStream(Protocol):
    """What is read of a file or pipe that is open for bytes."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its end, or as many bytes of it as the limit says."""


class LoadFile(NamedTuple):
    """A file to load: the name that errors give it, and its bytes."""

    name: str
    stream: LineStream


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """What a load has done: lines read, and rows that it added or changed, and removed, by type."""

    lines: int
    written: Mapping[str, int]
    removed: Mapping[str, int]
    without_statistics: Sequence[str] = ()
    """Tables that changed, and that the server did not let this role look at for the planner."""


class LoadError(Exception):
    """Nothing was loaded. The message is one line and quotes only ids and names of fields."""

    def __init__(self, file: str | None, line: int | None, field: str | None, reason: str) -> None:
        super().__init__(file, line, field, reason)
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        """Return FILE:LINE: field: reason, without what is not known."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.reason) if part is not None)


def _ignore(_bytes_read: int) -> None:
    pass


def load(
    connection: psycopg.Connection[Any],
    files: Sequence[LoadFile],
    *,
    box: SecretBox,
    wait: float = DEFAULT_WAIT,
    advance: Callable[[int], None] = _ignore,
) -> LoadSummary:
    """Load files in one transaction, and update the planner's statistics of the tables that changed.

    The files are read once, front to end, in memory that does not depend on their size. `advance` is told
    how many bytes have been read since the last call. The connection is in autocommit mode. `wait` is for how many
    seconds to wait for a row or table that somebody else holds.

    Raises:
        LoadError: A line is wrong, or the wait was in vain. Nothing has been loaded.
        psycopg.OperationalError: The database went away. Nothing has been loaded, unless at the very end.

    """
    try:
        with connection.transaction():
            work = Load(connection, box=box, wait=wait)
            for file in files:
                work.stage(file.name, _lines(file, advance))
            summary = work.write()
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        # Not an error that a line is known to cause. The server's message would quote the row.
        refusal = error.diag.constraint_name or type(error).__name__
        raise LoadError(None, None, None, f"the database refuses a row ({refusal})") from None
    except psycopg.errors.LockNotAvailable:
        holders = ", ".join(list_holders(connection)) or "another session"
        raise LoadError(None, None, None, f"gave up waiting for {holders}: nothing was loaded, try again") from None
    changed = [table.name for name, table in TABLES.items() if summary.written[name] or summary.removed[name]]
    return replace(summary, without_statistics=[table for table in changed if not _analyze(connection, table)])


def _analyze(connection: psycopg.Connection[Any], table: str) -> bool:
    """Update the planner's statistics of a table, and return whether the server has done so.

    Before PostgreSQL 17 the owner alone may. The server warns where it leaves a table out, and goes on.
    """
    severities: list[str | None] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        severities.append(notice.severity_nonlocalized)

    connection.add_notice_handler(note)
    try:
        with connection.transaction():
            become_owner(connection)
            connection.execute(_SQL[f"analyze {table}"], prepare=False)
    finally:
        connection.remove_notice_handler(note)
    return "WARNING" not in severities


class Load:
    """One load, inside its transaction: lines are staged, source by source, and then written."""

    def __init__(self, connection: psycopg.Connection[Any], *, box: SecretBox, wait: float = DEFAULT_WAIT) -> None:
        self._connection = connection
        self._box = box
        self._wait = wait
        self._sources: list[str] = []
        self._lines = 0
        self._batch: dict[str, list[tuple[Any, ...]]] = {record_type: [] for record_type in TABLES}
        self._batch_bytes = 0
        self._staged: set[str] = set()
        self._execute("begin")
        for table in TABLES.values():
            self._execute(f"create_staging {table.name}")

    def stage(self, source: str, lines: Iterable[tuple[int, bytes]]) -> None:
        """Check every line, with its number, and bring it into the staging table of its type."""
        self._sources.append(source)
        first_place = len(self._sources) - 1 << _LINE_BITS
        for number, line in lines:
            try:
                self._add(first_place | number, read_record(line), size=len(line))
            except FieldError as error:
                raise LoadError(source, number, error.field, error.reason) from None
        self._flush()

    def write(self) -> LoadSummary:
        """Make the tables what the staged lines say."""
        staged_types = [record_type for record_type in TABLES if record_type in self._staged]
        for record_type in staged_types:
            self._execute(f"keep_last_lines {TABLES[record_type].name}")
        self._execute("begin_writing")
        self._execute("limit_waiting", milliseconds=lock_timeout(self._wait))
        written = {record_type: self._write(record_type) for record_type in staged_types}
        self._limit_live_keys()
        removed = {record_type: self._remove(record_type) for record_type in reversed(staged_types)}
        self._check_numbers_and_identities()
        nothing = dict.fromkeys(TABLES, 0)
        return LoadSummary(self._lines, nothing | written, nothing | removed)

    def _add(self, place: int, record: Record | Removal, *, size: int) -> None:
        if isinstance(record, SigningKey) and isinstance(record.secret, str):
            record.secret = self._sealed(record, record.secret)
        record_type, row = _row(record)
        self._batch[record_type].append((place, *row))
        self._batch_bytes += size
        self._lines += 1
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _sealed(self, key: SigningKey, secret: str) -> str:
        """Return the secret of a line encrypted: the server sees no other."""
        organization_id, key_id = UUID(key.organization_id), UUID(key.id)
        try:
            return self._box.seal(secret, organization_id=organization_id, key_id=key_id, algorithm=key.algorithm)
        except NoSecretKeyError as error:
            raise FieldError("secret", f"no secret key is configured: {error}") from None

    def _flush(self) -> None:
        for record_type, rows in self._batch.items():
            if rows:
                with self._connection.cursor().copy(_SQL[f"copy {TABLES[record_type].name}"]) as copy:
                    for row in rows:
                        copy.write_row(row)
                self._staged.add(record_type)
                rows.clear()
        self._batch_bytes = 0

    def _write(self, record_type: str) -> int:
        statement = f"write {TABLES[record_type].name}"
        if record_type == "signing_key":
            self._guard_signing_keys()
            statement = "write_signing_keys"
        elif record_type == "contact":
            self._execute("fill_times_of_contacts")
        parents = [reference for reference in REFERENCES if reference.record_type == record_type]
        return self._change(statement, diagnosis="find_without_parent", references=parents)

    def _remove(self, record_type: str) -> int:
        if not RECORDS[record_type].removable:
            return 0
        children = [reference for reference in REFERENCES if reference.parent_type == record_type]
        statement = f"remove {TABLES[record_type].name}"
        return self._change(statement, diagnosis="find_still_needed", references=children)

    def _change(self, statement: str, *, diagnosis: str, references: Sequence[Reference]) -> int:
        """Return how many rows a statement has changed. Name the line where a reference stands in its way."""
        try:
            with self._connection.transaction():
                return self._execute(statement).rowcount
        except psycopg.errors.ForeignKeyViolation:
            self._refuse_reference(diagnosis, references)
            raise

    def _refuse_reference(self, diagnosis: str, references: Sequence[Reference]) -> None:
        """Raise LoadError for the first line, if there is one, that a reference makes wrong."""
        places = [(self._find(f"{diagnosis} {reference.name}"), reference.field) for reference in references]
        wrong = [(place, field) for place, field in places if place is not None]
        if not wrong:
            return
        place, field = min(wrong, key=lambda found: found[0])
        if diagnosis == "find_still_needed":
            field, reason = "deleted", _NEEDED
        else:
            reason = _NO_PARENT
        raise self._error_at(place, field, reason) from None

    def _guard_signing_keys(self) -> None:
        """Let nobody else add keys to the organizations until the end, and no line change an existing key."""
        with self._rows("list_organizations_with_staged_keys") as rows:
            for (organization_id,) in rows:
                self._execute("lock_organization", organization_id=organization_id)
        with self._rows("list_known_signing_keys") as rows:
            for place, *key in rows:
                try:
                    _StagedKey(*key).check(self._box)
                except FieldError as error:
                    raise self._error_at(place, error.field, error.reason) from None

    def _limit_live_keys(self) -> None:
        place = self._find("find_key_beyond_limit", maximum=MAXIMUM_LIVE_KEYS)
        if place is not None:
            reason = f"the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys"
            raise self._error_at(place, "id", reason)

    def _check_numbers_and_identities(self) -> None:
        try:
            with self._connection.transaction():
                self._execute("check_numbers_and_identities")
        except psycopg.errors.UniqueViolation as error:
            column, field, reason = _REPEATED[error.diag.constraint_name or ""]
            place = self._find(f"find_repeated {column}")
            if place is None:
                raise
            # What the server said quotes the row.
            raise self._error_at(place, field, reason) from None

    def _find(self, diagnosis: str, **parameters: Any) -> int | None:
        """Return the place of the line that a statement finds."""
        found = self._execute(diagnosis, **parameters).fetchone()
        return None if found is None else int(found[0])

    def _error_at(self, place: int, field: str | None, reason: str) -> LoadError:
        source_number, line_number = divmod(place, 2**_LINE_BITS)
        return LoadError(self._sources[source_number], line_number, field, reason)

    def _execute(self, statement: str, **parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        # Each runs once; and several statements in one text cannot be prepared.
        cursor = self._connection.cursor(row_factory=tuple_row)
        return cursor.execute(_SQL[statement], parameters or None, prepare=False)

    def _rows(self, statement: str) -> psycopg.ServerCursor[tuple[Any, ...]]:
        """Return the rows of a statement in a cursor of the server, so that they need not fit into memory."""
        return self._connection.cursor(statement, row_factory=tuple_row).execute(_SQL[statement])


def _row(record: Record | Removal) -> tuple[str, tuple[Any, ...]]:
    """Return the type of a line, and what is staged of it after its place."""
    if isinstance(record, Removal):
        left_out = len(TABLES[record.type].columns) - len(("id", "organization_id"))
        return record.type, (True, record.id, record.organization_id, *[None] * left_out)
    return str(record.__struct_config__.tag), (False, *values(record))


_NO_PARENT: Final = "there is no such row in this organization when all files are read"
_NEEDED: Final = "other rows still refer to this one when all files are read"
_REPEATED: Final = {
    "cases_case_number_unique": (
        "cases.case_number",
        "case_number",
        "another case of the organization has this number",
    ),
    "visitors_external_id_unique": (
        "visitors.external_id",
        "external_id",
        "another visitor of the organization has this identity",
    ),
}


class _StagedKey(NamedTuple):
    """A line with a signing key that exists already, beside what is stored of it."""

    organization_id: str
    id: str
    algorithm: str
    encrypted_secret: str | None
    public_key: str | None
    stored_algorithm: str
    stored_encrypted_secret: str | None
    stored_public_key: str | None
    revived: bool

    def check(self, box: SecretBox) -> None:
        """Raise FieldError where the line is about another key, or would bring it back."""
        if self.algorithm != self.stored_algorithm:
            raise FieldError("algorithm", "the algorithm of an existing key never changes")
        if self.stored_encrypted_secret is not None:
            self._check_secret(box)
        elif not _is_same_public_key(self.public_key or "", self.stored_public_key or ""):
            raise FieldError("public_key", "the key material of an existing key never changes")
        if self.revived:
            raise FieldError(
                "retired_at", "the retirement of a key is never undone; give its time, or leave the line out"
            )

    def _check_secret(self, box: SecretBox) -> None:
        label = {
            "organization_id": UUID(self.organization_id),
            "key_id": UUID(self.id),
            "algorithm": self.algorithm,
        }
        try:
            stored = box.open(self.stored_encrypted_secret, **label)
        except SecretNotOpenedError:
            raise FieldError(
                "secret", f"no configured secret key opens what is stored of signing key {self.id}"
            ) from None
        if stored != box.open(self.encrypted_secret, **label):
            raise FieldError("secret", "the key material of an existing key never changes")


def _is_same_public_key(pem: str, stored_pem: str) -> bool:
    try:
        return pem == stored_pem or load_pem_public_key(pem.encode()) == load_pem_public_key(stored_pem.encode())
    except ValueError:
        # Only `load` and create-key check what is stored.
        return False


def _lines(file: LoadFile, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, each with its number."""
    for number in count(1):
        line = _line(file, number)
        if not line:
            return
        if number == 1:
            _refuse_other_forms(file, line)
        if len(line) > MAXIMUM_LINE_BYTES:
            raise LoadError(file.name, number, None, f"longer than {MAXIMUM_LINE_BYTES // 2**20} MiB")
        advance(len(line))
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, content


def _line(file: LoadFile, number: int) -> bytes:
    try:
        return file.stream.readline(MAXIMUM_LINE_BYTES + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise LoadError(file.name, number, None, "cannot be read (it is no gzip file, or a damaged one)") from None
    except OSError as error:
        raise LoadError(file.name, number, None, f"cannot be read ({error.strerror})") from None


# What is taken for NDJSON by mistake, by its first bytes.
_OTHER_FORMS: Final = {
    b"\x1f\x8b": "a gzip file: give it a name that ends in .gz, or unpack it",
    b"PK\x03\x04": "a zip file: unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it",
    codecs.BOM_UTF16_LE: "text in UTF-16: write it in UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: write it in UTF-8",
    b"{\0": "text in UTF-16: write it in UTF-8",
    b"\0{": "text in UTF-16: write it in UTF-8",
}


def _refuse_other_forms(file: LoadFile, line: bytes) -> None:
    for start, form in _OTHER_FORMS.items():
        if line.startswith(start):
            raise LoadError(file.name, None, None, form)

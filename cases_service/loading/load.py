"""Loads lines of the load format into the database: all of them or, with an error that names a line, none."""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import msgspec
import psycopg
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from psycopg.rows import tuple_row

from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS
from cases_service.database.statements import statements
from cases_service.loading.records import RECORDS, FieldError, read_fields

MAXIMUM_LINE_BYTES: Final = 16 * 2**20

_SQL: Final = {name: text.encode() for name, text in statements("loading").items()}
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
    advance: Callable[[int], None] = _ignore,
) -> LoadSummary:
    """Load files in one transaction, and update the planner's statistics of the tables that changed.

    The files are read once, front to end, in memory that does not depend on their size. `advance` is told
    how many bytes have been read since the last call. The connection is in autocommit mode.

    Raises:
        LoadError: A line is wrong. Nothing has been loaded.
        psycopg.OperationalError: The database went away. Nothing has been loaded, unless at the very end.

    """
    try:
        with connection.transaction():
            work = _Load(connection, files, box)
            work.stage(advance)
            summary = work.write()
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        # Not an error that a line is known to cause. The server's message would quote the row.
        refusal = error.diag.constraint_name or type(error).__name__
        raise LoadError(None, None, None, f"the database refuses a row ({refusal})") from None
    for record_type, target in _TARGETS.items():
        if summary.written[record_type] or summary.removed[record_type]:
            connection.execute(_SQL[target.analyze], prepare=False)
    return summary


class _Target(NamedTuple):
    """What is done with the lines of a type, by names of statements."""

    copy: str
    write: str
    analyze: str
    find_without_parent: str | None = None
    remove: str | None = None
    find_still_needed: str | None = None


# Parents come before their children.
_TARGETS: Final = {
    "organization": _Target("copy_organizations", "write_organizations", "analyze_organizations"),
    "user": _Target("copy_users", "write_users", "analyze_users", "find_user_without_parent"),
    "signing_key": _Target(
        "copy_signing_keys", "write_signing_keys", "analyze_signing_keys", "find_signing_key_without_parent"
    ),
    "visitor": _Target(
        "copy_visitors",
        "write_visitors",
        "analyze_visitors",
        "find_visitor_without_parent",
        "remove_visitors",
        "find_removed_visitor_with_contacts",
    ),
    "contact": _Target(
        "copy_contacts",
        "write_contacts",
        "analyze_contacts",
        "find_contact_without_parent",
        "remove_contacts",
        "find_removed_contact_with_cases",
    ),
    "case_funnel_stage": _Target(
        "copy_case_funnel_stages",
        "write_case_funnel_stages",
        "analyze_case_funnel_stages",
        "find_case_funnel_stage_without_parent",
        "remove_case_funnel_stages",
        "find_removed_case_funnel_stage_with_cases",
    ),
    "case": _Target("copy_cases", "write_cases", "analyze_cases", "find_case_without_parent", "remove_cases"),
}


def _columns(record_type: str) -> tuple[tuple[str, Any], ...]:
    """Return the columns that lines of a type are staged in, after their place, each with its default."""
    record = RECORDS[record_type]
    fields = [
        (
            "encrypted_secret" if field.name == "secret" else field.name,
            None if field.required else field.default,
        )
        for field in msgspec.structs.fields(record)
    ]
    return (("deleted", False), *fields) if record.removable else tuple(fields)


_COLUMNS: Final = {record_type: _columns(record_type) for record_type in RECORDS}


class _Load:
    """One load, inside its transaction."""

    def __init__(self, connection: psycopg.Connection[Any], files: Sequence[LoadFile], box: SecretBox) -> None:
        self._connection = connection
        self._files = files
        self._box = box
        self._lines = 0
        self._batch: dict[str, list[tuple[Any, ...]]] = {record_type: [] for record_type in _TARGETS}
        self._batch_bytes = 0
        self._staged: set[str] = set()

    def stage(self, advance: Callable[[int], None]) -> None:
        """Check every line and bring it into the staging table of its type."""
        self._execute("begin")
        self._execute("create_staging")
        for file_number, file in enumerate(self._files):
            for line_number, line in _lines(file, advance):
                try:
                    fields = self._sealed(read_fields(line))
                except FieldError as error:
                    raise LoadError(file.name, line_number, error.field, error.reason) from None
                self._add(file_number << _LINE_BITS | line_number, fields, size=len(line))
        self._flush()

    def write(self) -> LoadSummary:
        """Make the tables what the staged lines say."""
        self._execute("keep_last_lines")
        self._execute("begin_writing")
        staged_types = [record_type for record_type in _TARGETS if record_type in self._staged]
        written = {record_type: self._write(record_type) for record_type in staged_types}
        self._limit_live_keys()
        removed = {record_type: self._remove(record_type) for record_type in reversed(staged_types)}
        self._check_numbers_and_identities()
        nothing = dict.fromkeys(_TARGETS, 0)
        return LoadSummary(self._lines, nothing | written, nothing | removed)

    def _sealed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a line, with its secret encrypted: the server sees no other."""
        secret = fields.pop("secret", None)
        if secret is not None:
            try:
                fields["encrypted_secret"] = self._box.seal(
                    secret,
                    organization_id=UUID(fields["organization_id"]),
                    key_id=UUID(fields["id"]),
                    algorithm=fields["algorithm"],
                )
            except NoSecretKeyError as error:
                raise FieldError("secret", f"no secret key is configured: {error}") from None
        return fields

    def _add(self, place: int, fields: dict[str, Any], *, size: int) -> None:
        record_type = fields["type"]
        row = (place, *[fields.get(column, default) for column, default in _COLUMNS[record_type]])
        self._batch[record_type].append(row)
        self._batch_bytes += size
        self._lines += 1
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        for record_type, rows in self._batch.items():
            if rows:
                with self._connection.cursor().copy(_SQL[_TARGETS[record_type].copy]) as copy:
                    for row in rows:
                        copy.write_row(row)
                self._staged.add(record_type)
                rows.clear()
        self._batch_bytes = 0

    def _write(self, record_type: str) -> int:
        if record_type == "signing_key":
            self._guard_signing_keys()
        target = _TARGETS[record_type]
        return self._change(target.write, diagnosis=target.find_without_parent, reason=_NO_PARENT)

    def _remove(self, record_type: str) -> int:
        target = _TARGETS[record_type]
        if target.remove is None:
            return 0
        return self._change(target.remove, diagnosis=target.find_still_needed, reason=_NEEDED)

    def _change(self, statement: str, *, diagnosis: str | None, reason: str) -> int:
        """Return how many rows a statement has changed. Name the line where a reference stands in its way."""
        try:
            with self._connection.transaction():
                return self._execute(statement).rowcount
        except psycopg.errors.ForeignKeyViolation:
            if diagnosis is not None:
                self._refuse_found(diagnosis, reason)
            raise

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
        reason = f"the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys"
        self._refuse_found("find_key_beyond_limit", reason, maximum=MAXIMUM_LIVE_KEYS)

    def _check_numbers_and_identities(self) -> None:
        try:
            with self._connection.transaction():
                self._execute("check_numbers_and_identities")
        except psycopg.errors.UniqueViolation as error:
            diagnosis, reason = _REPEATED[error.diag.constraint_name or ""]
            self._refuse_found(diagnosis, reason)
            raise

    def _refuse_found(self, diagnosis: str, reason: str, **parameters: Any) -> None:
        """Raise LoadError for the place that a statement finds, if it finds one."""
        found = self._execute(diagnosis, **parameters).fetchone()
        if found is not None:
            place, field = found
            # What the server said quotes the row.
            raise self._error_at(place, field, reason) from None

    def _error_at(self, place: int, field: str | None, reason: str) -> LoadError:
        file_number, line_number = divmod(place, 2**_LINE_BITS)
        return LoadError(self._files[file_number].name, line_number, field, reason)

    def _execute(self, statement: str, **parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        # Each runs once; and several statements in one text cannot be prepared.
        cursor = self._connection.cursor(row_factory=tuple_row)
        return cursor.execute(_SQL[statement], parameters or None, prepare=False)

    def _rows(self, statement: str) -> psycopg.ServerCursor[tuple[Any, ...]]:
        """Return the rows of a statement in a cursor of the server, so that they need not fit into memory."""
        return self._connection.cursor(statement, row_factory=tuple_row).execute(_SQL[statement])


_NO_PARENT: Final = "there is no such row in this organization when all files are read"
_NEEDED: Final = "other rows still refer to this one when all files are read"
_REPEATED: Final = {
    "cases_case_number_unique": (
        "find_repeated_case_number",
        "another case of the organization has this number",
    ),
    "visitors_external_id_unique": (
        "find_repeated_external_id",
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
        try:
            line = file.stream.readline(MAXIMUM_LINE_BYTES + 1)
        except OSError as error:
            raise LoadError(file.name, number, None, f"cannot be read ({error.strerror})") from None
        if not line:
            return
        if len(line) > MAXIMUM_LINE_BYTES:
            raise LoadError(file.name, number, None, f"longer than {MAXIMUM_LINE_BYTES // 2**20} MiB")
        advance(len(line))
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip():
            yield number, content

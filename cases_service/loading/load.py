"""Loads lines of the load format into the database: all of them, or none and an error that names a line.

In mode `each`, right lines are stored and wrong ones are reported.
"""

import codecs
import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from math import inf
from time import monotonic
from typing import Any, Final, Literal, NamedTuple, Protocol
from uuid import UUID

import psycopg
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from psycopg.rows import tuple_row

from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS
from cases_service.database.command_connection import is_citus, limit_waiting_on_nodes
from cases_service.database.migrations import DEFAULT_WAIT, become_owner, list_holders, lock_timeout
from cases_service.loading.conversations import StagedConversations
from cases_service.loading.erased import ErasedVisitors
from cases_service.loading.records import (
    RECORDS,
    FieldError,
    Reading,
    Record,
    Removal,
    SigningKey,
    left_out,
    organization_of,
    read_record,
    values,
)
from cases_service.loading.runs import Run, begin, list_existing, record_run
from cases_service.loading.statements import (
    CONVERSATION,
    DATED,
    NAMING_VISITORS,
    REFERENCES,
    STATEMENTS,
    STATEMENTS_ON_CITUS,
    TABLES,
    TIMED,
    UNIQUE_FIELDS,
    Reference,
)

# Enough for texts of maximum length in which every character is escaped.
MAXIMUM_LINE_BYTES: Final = 2**20

MAXIMUM_ERRORS: Final = 100
"""How many errors a load keeps by default. It counts all of them."""

IMPORTED_TYPES: Final = tuple(name for name in RECORDS if name not in ("organization", "signing_key", "event"))
"""The types of an organization's rows, without credentials and events."""

REMOVABLE: Final = tuple(name for name, record in RECORDS.items() if record.removable)
"""The types of rows that a line can remove."""

_SQL: Final = {name: text.encode() for name, text in STATEMENTS.items()}
_SQL_ON_CITUS: Final = {name: text.encode() for name, text in STATEMENTS_ON_CITUS.items()}
_BATCH_BYTES: Final = 2**20
_LINE_BITS: Final = 40


class LineStream(Protocol):
    """The part of a binary file or pipe that a load uses."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its newline, or at most `limit` bytes of it."""


class LoadFile(NamedTuple):
    """A file to load: its name in errors, and its bytes."""

    name: str
    stream: LineStream


class LineError(NamedTuple):
    """An error in a line. It quotes only ids and names of fields."""

    file: str
    line: int
    field: str | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How lines are loaded.

    Attributes:
        mode: `all` loads every line or none; `each` loads the right ones, and reports the others.
        if_newer: A contact or case, and its removal, counts only if its `updated_at` is later than the stored one.
        keeps_left_out: Fields missing from a line keep their values if the row exists, instead of becoming null.
        organization_id: The only organization allowed. Lines may leave it out, and may be no organizations or keys.
        maximum_errors: How many errors are kept, from the first; None for all.
        maximum_removals: If set, rows that no line names are removed, for the organizations in the files; nothing is
            loaded if that would be a larger share than this of an organization's rows of a type. Activities and
            messages are removed only for organizations that have lines of that type. Mode `all` only. With
            `if_newer`, rows that changed after every line of their type stay: they are newer than the files.

    """

    mode: Literal["all", "each"] = "all"
    if_newer: bool = False
    keeps_left_out: bool = False
    organization_id: UUID | None = None
    maximum_errors: int | None = MAXIMUM_ERRORS
    maximum_removals: float | None = None

    @property
    def reading(self) -> Reading:
        """How lines are read."""
        if self.organization_id is None:
            return Reading(keeps=self.keeps_left_out)
        return Reading(organization_id=str(self.organization_id), types=IMPORTED_TYPES, keeps=self.keeps_left_out)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """The result of a load.

    Attributes:
        lines: The non-blank lines read. Each of them is counted in one of the following.
        written: Rows that were added or changed, by type.
        removed: Rows that were removed, by type.
        unchanged: Lines that changed nothing: the row is already like that or gone, or a later line names it.
        stale: Lines that were older than their row.
        error_count: Lines that are wrong.
        errors: The first errors.
        without_statistics: Changed tables whose statistics the server did not let this role update.
        organizations: How many lines named each organization.

    """

    lines: int
    written: Mapping[str, int]
    removed: Mapping[str, int]
    unchanged: int = 0
    stale: int = 0
    error_count: int = 0
    errors: Sequence[LineError] = ()
    without_statistics: Sequence[str] = ()
    organizations: Mapping[UUID, int] = field(default_factory=dict)

    def __add__(self, later: "LoadSummary") -> "LoadSummary":
        """Return the combined result of two loads."""
        return LoadSummary(
            lines=self.lines + later.lines,
            written=Counter(self.written) + Counter(later.written),
            removed=Counter(self.removed) + Counter(later.removed),
            unchanged=self.unchanged + later.unchanged,
            stale=self.stale + later.stale,
            error_count=self.error_count + later.error_count,
            errors=[*self.errors, *later.errors],
            without_statistics=list(dict.fromkeys([*self.without_statistics, *later.without_statistics])),
            organizations=Counter(self.organizations) + Counter(later.organizations),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result of a load as its JSON object."""
        names = ("lines", "written", "removed", "unchanged", "stale", "error_count")
        return {name: getattr(self, name) for name in names} | {"errors": [error._asdict() for error in self.errors]}


class LoadError(Exception):
    """Nothing was loaded. The message is one line and quotes only ids and names of fields."""

    def __init__(self, file: str | None, line: int | None, field: str | None, reason: str) -> None:
        super().__init__(file, line, field, reason)
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        """Return FILE:LINE: field: reason, without unknown parts."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.reason) if part is not None)


def _ignore(_bytes_read: int) -> None:
    pass


def load(
    connection: psycopg.Connection[Any],
    files: Sequence[LoadFile],
    *,
    box: SecretBox,
    options: LoadOptions = LoadOptions(),
    wait: float = DEFAULT_WAIT,
    advance: Callable[[int], None] = _ignore,
    rehearses: bool = False,
) -> LoadSummary:
    """Load files in one transaction, and update the planner's statistics of tables that changed a lot.

    The files are read once, from start to end, in memory that does not depend on their size. `advance` gets the number
    of bytes read since the last call. The connection must be in autocommit mode. `wait` is how many seconds to wait for
    a row or table that another session holds. With `rehearses`, everything is done except the commit.

    Raises:
        LoadError: A line is wrong in mode `all`, a file cannot be read, or the wait timed out. Nothing has been loaded.
        psycopg.OperationalError: The database went away. Nothing has been loaded, unless at the very end.

    """

    def stage(work: Load) -> None:
        for file in files:
            work.stage(file.name, _lines(file, advance))

    return _load(connection, stage, box=box, options=options, wait=wait, rehearses=rehearses)


def load_lines(
    connection: psycopg.Connection[Any],
    source: str,
    lines: Iterable[tuple[int, bytes]],
    *,
    box: SecretBox,
    options: LoadOptions = LoadOptions(),
    wait: float = DEFAULT_WAIT,
    is_run: bool = True,
) -> LoadSummary:
    """Load lines as `load` does, each with its number in the source that errors name.

    If they are part of a longer load, which records one run at the end, they record none of their own.
    """
    return _load(connection, lambda work: work.stage(source, lines), box=box, options=options, wait=wait, is_run=is_run)


def _batches(
    files: Iterable[LoadFile], *, size: int, advance: Callable[[int], None]
) -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """Yield the lines of files in batches, each with the name of its file."""
    for file in files:
        lines = _lines(file, advance)
        while batch := list(islice(lines, size)):
            yield file.name, batch


def load_in_batches(
    connection: psycopg.Connection[Any],
    files: Iterable[LoadFile],
    *,
    size: int,
    box: SecretBox,
    options: LoadOptions = LoadOptions(),
    wait: float = DEFAULT_WAIT,
    advance: Callable[[int], None] = _ignore,
) -> LoadSummary:
    """Load files as `load` does, but commit after every so many lines. Only the state after each batch counts.

    Raises:
        LoadError: As in `load`. Earlier batches stay, and the message says how many lines they had.
        psycopg.OperationalError: The database went away.

    """
    started = monotonic()
    done = LoadSummary(0, {}, {})
    try:
        for name, lines in _batches(files, size=size, advance=advance):
            done += load_lines(connection, name, lines, box=box, options=options, wait=wait, is_run=False)
    except LoadError as error:
        reason = f"{error.reason}; of the lines before its batch, {done.lines:,} are loaded"
        raise LoadError(error.file, error.line, error.field, reason) from None
    finally:
        if not connection.closed:
            with connection.transaction():
                begin(connection)
                _record(connection, done, seconds=monotonic() - started)
    return done


def _record(connection: psycopg.Connection[Any], summary: LoadSummary, *, seconds: float) -> None:
    """Record the result of a load for each of its organizations, in the current transaction."""
    is_one = len(summary.organizations) == 1
    changed = sum(summary.written.values()), sum(summary.removed.values())
    counts = (*changed, summary.stale, summary.error_count) if is_one else (None,) * 4
    written, removed, stale, wrong = counts
    for organization_id in list_existing(connection, summary.organizations):
        run = Run(
            organization_id=organization_id,
            source="load",
            lines=summary.lines if is_one else summary.organizations[organization_id],
            written=written,
            removed=removed,
            stale=stale,
            wrong=wrong,
            duration_ms=round(seconds * 1000),
        )
        record_run(connection, run)


def _load(
    connection: psycopg.Connection[Any],
    stage: Callable[["Load"], None],
    *,
    box: SecretBox,
    options: LoadOptions,
    wait: float,
    rehearses: bool = False,
    is_run: bool = True,
) -> LoadSummary:
    started = monotonic()
    try:
        with connection.transaction(force_rollback=rehearses):
            work = Load(connection, box=box, options=options, wait=wait)
            stage(work)
            summary = work.write()
            if is_run:
                _record(connection, summary, seconds=monotonic() - started)
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        # Not known to be caused by a line. The server's message would quote the row.
        refusal = error.diag.constraint_name or type(error).__name__
        raise LoadError(None, None, None, f"the database refuses a row ({refusal})") from None
    except psycopg.errors.InternalError_:
        # Of Citus, where a node refuses the commit: somebody has just taken a number, or it went away.
        raise LoadError(None, None, None, "a node refused the commit, or did not answer it: try again") from None
    except psycopg.errors.LockNotAvailable:
        holders = ", ".join(list_holders(connection)) or "another session"
        raise LoadError(None, None, None, f"gave up waiting for {holders}: nothing was loaded, try again") from None
    if rehearses:
        return summary
    changed = {table.name: summary.written[name] + summary.removed[name] for name, table in TABLES.items()}
    due = [table for table, rows in changed.items() if rows and _is_analyze_due(connection, table, rows)]
    left = [table for table in due if not update_statistics(connection, _SQL[f"analyze {table}"])]
    return replace(summary, without_statistics=left)


def _is_analyze_due(connection: psycopg.Connection[Any], table: str, changed: int) -> bool:
    cursor = connection.cursor(row_factory=tuple_row)
    row = cursor.execute(_SQL[f"is_analyze_due {table}"], {"changed": changed}, prepare=False).fetchone()
    return row is not None and bool(row[0])


def update_statistics(connection: psycopg.Connection[Any], statement: bytes) -> bool:
    """Update the planner's statistics by a statement, and return whether the server did so for all of its tables.

    Before PostgreSQL 17 only the owner may. The server warns about each table that it skips, and continues.
    """
    severities: list[str | None] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        severities.append(notice.severity_nonlocalized)

    connection.add_notice_handler(note)
    try:
        with connection.transaction():
            become_owner(connection)
            connection.execute(statement, prepare=False)
    finally:
        connection.remove_notice_handler(note)
    return "WARNING" not in severities


@dataclass(slots=True)
class _Errors:
    """The errors of lines, by their places: all are counted, and the first ones kept."""

    maximum: int | None
    count: int = 0
    _kept: list[tuple[int, str | None, str]] = field(default_factory=list)

    def add(self, place: int, field: str | None, reason: str) -> None:
        self.count += 1
        self._kept.append((place, field, reason))
        if self.maximum is not None and len(self._kept) > 2 * self.maximum:
            self._kept = self.first()

    def first(self) -> list[tuple[int, str | None, str]]:
        return sorted(self._kept, key=lambda error: error[0])[: self.maximum]


class Load:
    """One load inside its transaction: it stages lines, source by source, and then writes them."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        box: SecretBox,
        options: LoadOptions = LoadOptions(),
        wait: float = DEFAULT_WAIT,
        deadline: float = inf,
    ) -> None:
        self._connection = connection
        self._is_on_citus = False
        self._deadline = deadline
        self._box = box
        self._options = options
        self._reading = options.reading
        self._wait = wait
        self._sources: list[str] = []
        self._lines = 0
        self._superseded = 0
        self._unnamed = 0
        self._stale = 0
        self._errors = _Errors(options.maximum_errors)
        self._wrong: dict[int, tuple[str | None, str]] = {}
        self._batch: dict[str, list[tuple[Any, ...]]] = {record_type: [] for record_type in TABLES}
        self._batch_bytes = 0
        self._staged: set[str] = set()
        self._erased: dict[str, list[int]] = {}
        self._organizations: Counter[str] = Counter()
        self._conversing: dict[str, set[str]] = {record_type: set() for record_type in CONVERSATION}
        self._conversations = StagedConversations(self._execute)
        self._execute("begin")
        self._is_on_citus = is_citus(connection)

    @classmethod
    def of_request(cls, connection: psycopg.Connection[Any], options: LoadOptions, *, deadline: float) -> "Load":
        """Return a load that ends by a deadline (of `monotonic`), including its waits for others.

        It collects errors in both modes: the caller decides whether to commit.
        """
        work = cls(connection, box=SecretBox([]), options=replace(options, mode="each"), deadline=deadline)
        work._limit("limit_request", deadline - monotonic())
        return work

    def _limit(self, statement: str, seconds: float) -> None:
        """Limit how long the transaction waits for what others hold."""
        milliseconds = lock_timeout(seconds)
        self._execute(statement, milliseconds=milliseconds)
        if self._is_on_citus:
            limit_waiting_on_nodes(self._connection, int(milliseconds))

    def stage(self, source: str, lines: Iterable[tuple[int, bytes]]) -> None:
        """Check every line, with its number, and copy it into the staging table of its type."""
        self._sources.append(source)
        first_place = len(self._sources) - 1 << _LINE_BITS
        for number, line in lines:
            self._lines += 1
            try:
                if len(line) > MAXIMUM_LINE_BYTES:
                    raise FieldError(None, f"longer than {MAXIMUM_LINE_BYTES // 2**20} MiB")  # noqa: TRY301
                self._add(first_place | number, read_record(line, self._reading), size=len(line))
            except FieldError as error:
                if self._options.mode == "all":
                    raise LoadError(source, number, error.field, error.reason) from None
                self._errors.add(first_place | number, error.field, error.reason)
        self._flush()

    def write(self) -> LoadSummary:
        """Apply the staged lines to the tables."""
        staged_types = self._keep_what_counts()
        self._execute("take_turns", keys=sorted({_turn_of(one) for one in self._organizations})).fetchall()
        self._execute("defer_constraints")
        if self._deadline == inf:
            self._limit("limit_waiting", self._wait)
        self._find_erased()
        converses = not self._staged.isdisjoint(CONVERSATION)
        if converses:
            self._conversations.lock(self._organizations)
        for record_type in staged_types:
            self._compare_with_stored(record_type)
        for record_type in REMOVABLE if self._is_snapshot else ():
            self._stage_unnamed(record_type)
        if converses:
            self._prepare_conversations(staged_types)
        if self._options.mode == "all":
            written, removed = self._write_all(staged_types)
        else:
            written, removed = self._write_right_ones(staged_types)
        return self._summary(written, removed)

    def _find_erased(self) -> None:
        """Find the lines about erased visitors. From here on, no erasure can run."""
        named = [record_type for record_type in NAMING_VISITORS if record_type in self._staged]
        if not named:
            return
        erased = ErasedVisitors(self._connection, self._organizations)
        for record_type in named if erased.organizations else ():
            given = {"organizations": erased.organizations}
            with self._rows(f"list_external_ids {TABLES[record_type].name}", **given) as rows:
                self._erased[record_type] = [place for place, *whom in rows if erased.include(*whom)]

    @property
    def _is_snapshot(self) -> bool:
        return self._options.maximum_removals is not None

    def _keep_what_counts(self) -> list[str]:
        """Keep one line of each row, and return the staged types, parents first."""
        for record_type in REMOVABLE if self._is_snapshot else ():
            self._create_staging(record_type)
        for record_type in () if self._staged.isdisjoint(CONVERSATION) else CONVERSATION:
            self._create_staging(record_type)
        staged_types = [record_type for record_type in TABLES if record_type in self._staged]
        for record_type in staged_types:
            self._keep_one_line(record_type)
        for record_type in REMOVABLE if self._is_snapshot else ():
            self._execute(f"remember_named {TABLES[record_type].name}")
        return staged_types

    def _prepare_conversations(self, staged_types: Sequence[str]) -> None:
        """Read the stored conversations. Rows removed with their case need no line."""
        if self._is_snapshot:
            self._conversations.lock(self._organizations)
        self._conversations.prepare()
        if "case" in staged_types:
            self._unnamed -= self._conversations.skip_taken_along(unnamed=_UNNAMED)

    def _stage_unnamed(self, record_type: str) -> None:
        """Stage the removal of rows that no line names, unless they are too many."""
        table = TABLES[record_type].name
        organizations = list(self._conversing.get(record_type, self._organizations))
        given = {"organizations": organizations, "spares_newer": self._options.if_newer}
        share = self._options.maximum_removals or 0.0
        for organization_id, rows, unnamed in self._execute(f"count_unnamed {table}", **given).fetchall():
            if unnamed > share * rows:
                raise LoadError(
                    None,
                    None,
                    None,
                    f"nothing was loaded: the files name all but {unnamed:,} of the {rows:,} {table} of organization"
                    f" {organization_id}, and more than {share:.4g} of them are not removed (--max-removals)",
                )
        self._unnamed += self._execute(f"stage_unnamed {table}", place=_UNNAMED, **given).rowcount

    def _summary(self, written: dict[str, int], removed: dict[str, int]) -> LoadSummary:
        nothing = dict.fromkeys(self._reading.types, 0)
        changed = sum(written.values()) + sum(removed.values())
        return LoadSummary(
            lines=self._lines,
            written=nothing | written,
            removed=nothing | removed,
            unchanged=self._lines - changed + self._unnamed - self._stale - self._errors.count,
            stale=self._stale,
            error_count=self._errors.count,
            errors=[LineError(*self._source_of(place), name, reason) for place, name, reason in self._errors.first()],
            organizations=_by_id(self._organizations),
        )

    def _keep_one_line(self, record_type: str) -> None:
        """Keep only the line of each row that counts."""
        table = TABLES[record_type].name
        self._execute(f"analyze_staging {table}")
        is_dated = self._options.if_newer and record_type in DATED
        merge, keep = ("merge_newest", "keep_newest") if is_dated else ("merge_lines", "keep_last_lines")
        merged = self._execute(f"{merge} {table}").rowcount if self._options.keeps_left_out else 0
        surplus = self._execute(f"{keep} {table}").rowcount - merged
        if is_dated:
            self._stale += surplus
        if self._options.mode == "each":
            self._execute(f"index_staging {table}")

    def _compare_with_stored(self, record_type: str) -> None:
        """Exclude stale lines, and fill in the fields that keep their values."""
        table, options = TABLES[record_type], self._options
        if record_type in DATED and (options.if_newer or options.keeps_left_out):
            for organization_id in self._organizations:
                self._execute(f"lock_rows {table.name}", organization_id=organization_id).fetchone()
        if record_type in DATED and options.if_newer:
            self._stale += self._execute(f"skip_stale {table.name}").rowcount
            self._stale += self._execute(f"skip_removed {table.name}").rowcount
        if options.keeps_left_out and table.optional:
            self._execute(f"fill_left_out {table.name}")

    def _write_all(self, staged_types: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Write and remove every row, or raise LoadError for the first line found that cannot be."""
        if refused := [place for places in self._erased.values() for place in places]:
            raise self._error_at(min(refused), *_ERASED)
        if self._options.keeps_left_out and "case" in staged_types:
            for (place,) in self._execute("exclude_closed_without_time").fetchall():
                raise self._error_at(place, "closed_at", _NOT_CLOSED)
        written = {record_type: self._write(record_type) for record_type in staged_types if record_type != "event"}
        if "signing_key" in staged_types:
            self._limit_live_keys()
        removed = {record_type: self._remove(record_type) for record_type in reversed(staged_types)}
        if "message" in staged_types:
            self._conversations.count()
        self._check_numbers_and_identities()
        if "event" in staged_types:
            written["event"] = self._write("event")
        return written, removed

    def _write_right_ones(self, staged_types: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Write and remove every row that can be, and report the other lines.

        Conflicts over numbers and identities are found before anything is written, unless they depend on a removal
        that fails or on another session's change: then everything is written again without the conflicting lines.
        """
        for record_type, name in UNIQUE_FIELDS:
            if record_type in staged_types:
                self._execute(f"index_claims {TABLES[record_type].name}.{name}")
        in_the_way: dict[int, tuple[str | None, str]] = {}
        for _ in range(_TRIES):
            self._wrong = dict(in_the_way)
            try:
                with self._connection.transaction():
                    changed = self._try_right_ones(staged_types, sorted(in_the_way))
            except _InTheWayError as error:
                refused = {place: what for place, what in self._wrong.items() if what == _STILL_NEEDED}
                in_the_way |= refused | error.places
            except psycopg.errors.ForeignKeyViolation:
                # Another session has removed, or refers to, a row that was read a moment ago.
                continue
            else:
                for place, what in self._wrong.items():
                    self._errors.add(place, *what)
                return changed
        raise LoadError(None, None, None, "others change the same rows: nothing was loaded, try again")

    def _try_right_ones(
        self, staged_types: Sequence[str], in_the_way: list[int]
    ) -> tuple[dict[str, int], dict[str, int]]:
        written, removed = {}, {}
        for record_type in staged_types:
            table = TABLES[record_type].name
            if in_the_way:
                self._execute(f"exclude_lines {table}", places=in_the_way)
            self._exclude_wrong(record_type)
            if record_type != "event":
                written[record_type] = self._write_rows(record_type)
        for record_type in reversed(staged_types):
            for reference in _references(parent_type=record_type) if RECORDS[record_type].removable else ():
                self._exclude(f"exclude_still_needed {reference.name}", *_STILL_NEEDED)
            removed[record_type] = self._remove_rows(record_type)
        if "message" in staged_types:
            self._conversations.count()
        for record_type, name in UNIQUE_FIELDS:
            self._find_in_the_way(record_type, name)
        if "event" in staged_types:
            self._hold_positions()
            self._exclude("exclude_other_events", "position", _OTHER_EVENT)
            written["event"] = self._write_rows("event")
        return written, removed

    def _exclude_wrong(self, record_type: str) -> None:
        """Exclude the lines of a type that conflict with other rows."""
        if refused := self._erased.get(record_type):
            self._execute(f"exclude_lines {TABLES[record_type].name}", places=refused)
            self._wrong |= dict.fromkeys(refused, _ERASED)
        if record_type == "signing_key":
            self._guard_signing_keys()
            reason = f"the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys"
            self._exclude("exclude_keys_beyond_limit", "id", reason, maximum=MAXIMUM_LIVE_KEYS)
        if record_type == "case" and self._options.keeps_left_out:
            self._exclude("exclude_closed_without_time", "closed_at", _NOT_CLOSED)
        for reference in self._parents_of(record_type):
            self._exclude(f"exclude_without_parent {reference.name}", reference.field, _NO_PARENT)
        for unique_type, name in UNIQUE_FIELDS:
            if unique_type == record_type:
                column = f"{TABLES[record_type].name}.{name}"
                if self._is_on_citus:
                    self._execute(f"remember_holders {column}")
                self._exclude(f"exclude_repeated {column}", name, _REPEATED[column])

    def _exclude(self, statement: str, name: str | None, reason: str, **parameters: Any) -> None:
        places = self._execute(statement, **parameters).fetchall()
        self._wrong |= {place: (name, reason) for (place,) in places}

    def _find_in_the_way(self, record_type: str, name: str) -> None:
        column = f"{TABLES[record_type].name}.{name}"
        if record_type not in self._staged or self._is_unique(name):
            return
        places = self._execute(f"list_repeated {column}").fetchall()
        if places or not self._is_on_citus:
            raise _InTheWayError({place: (name, _REPEATED[column]) for (place,) in places}) from None

    def _is_unique(self, name: str) -> bool:
        """Tell whether no row has another's number or identity, as far as the server can be asked."""
        if self._is_on_citus:
            # Its nodes check at the commit.
            return False
        try:
            with self._connection.transaction():
                self._execute(_CHECKS[name])
        except psycopg.errors.UniqueViolation:
            return False
        return True

    def _parents_of(self, record_type: str) -> list[Reference]:
        """Return the references of a type. A caller's own organization is known to exist."""
        is_known = self._options.organization_id is not None
        references = [one for one in REFERENCES if one.record_type == record_type]
        return [one for one in references if not (is_known and one.parent_type == "organization")]

    def _add(self, place: int, record: Record | Removal, *, size: int) -> None:
        if isinstance(record, SigningKey) and isinstance(record.secret, str):
            record.secret = self._sealed(record, record.secret)
        record_type, row = _row(record, keeps_left_out=self._options.keeps_left_out)
        self._batch[record_type].append((place, *row))
        self._batch_bytes += size
        self._organizations[organization_of(record)] += 1
        if record_type in self._conversing:
            self._conversing[record_type].add(organization_of(record))
        if self._batch_bytes >= _BATCH_BYTES:
            self._flush()

    def _sealed(self, key: SigningKey, secret: str) -> str:
        """Return the secret of a line, encrypted: the server never sees it in clear text."""
        organization_id, key_id = UUID(organization_of(key)), UUID(key.id)
        try:
            return self._box.seal(secret, organization_id=organization_id, key_id=key_id, algorithm=key.algorithm)
        except NoSecretKeyError as error:
            raise FieldError("secret", f"no secret key is configured: {error}") from None

    def _flush(self) -> None:
        for record_type, rows in self._batch.items():
            if rows:
                self._create_staging(record_type)
                with self._connection.cursor().copy(_SQL[f"copy {TABLES[record_type].name}"]) as copy:
                    for row in rows:
                        copy.write_row(row)
                rows.clear()
        self._batch_bytes = 0

    def _create_staging(self, record_type: str) -> None:
        """Create the staging table of a type if it does not exist: few loads have all types."""
        if record_type not in self._staged:
            self._execute(f"create_staging {TABLES[record_type].name}")
            self._staged.add(record_type)

    def _write(self, record_type: str) -> int:
        if record_type == "signing_key":
            self._guard_signing_keys()
        references = self._parents_of(record_type)
        write = self._write_events if record_type == "event" else self._write_rows
        return self._change(write, record_type, diagnosis="find_without_parent", references=references)

    def _write_events(self, record_type: str) -> int:
        self._hold_positions()
        for (place,) in self._execute("exclude_other_events").fetchall():
            raise self._error_at(place, "position", _OTHER_EVENT)
        return self._write_rows(record_type)

    def _hold_positions(self) -> None:
        """Lock out new events until the transaction ends. Pruned events stay pruned."""
        self._execute("lock_positions")
        self._execute("skip_pruned")

    def _write_rows(self, record_type: str) -> int:
        if record_type == "signing_key":
            self._execute("exclude_ended_keys")
            return self._count_written("write_signing_keys")
        if record_type == "event":
            return self._count_written("write_events")
        table = TABLES[record_type].name
        if record_type in TIMED:
            self._execute(f"fill_times {table}")
            self._execute(f"fill_new_times {table}")
        if record_type == "activity":
            self._conversations.hide()
        if record_type == "message":
            self._conversations.place()
        written = self._count_written(f"write {table}")
        if record_type == "activity" and self._is_on_citus:
            self._execute("follow_activities")
        return written

    def _count_written(self, statement: str) -> int:
        """Return how many rows a statement added or changed."""
        written = self._execute(statement)
        if not self._is_on_citus:
            return written.rowcount
        row = written.fetchone()
        return 0 if row is None else int(row[0])

    def _remove(self, record_type: str) -> int:
        references = _references(parent_type=record_type)
        if record_type == "activity":
            # The database would remove its messages, too.
            self._refuse_reference("find_still_needed", references)
        return self._change(self._remove_rows, record_type, diagnosis="find_still_needed", references=references)

    def _remove_rows(self, record_type: str) -> int:
        if not RECORDS[record_type].removable:
            return 0
        table = TABLES[record_type].name
        removed = self._execute(f"remove {table}").rowcount
        if record_type in DATED and self._options.if_newer:
            self._execute(f"remember_removed {table}")
        return removed

    def _change(
        self, change: Callable[[str], int], record_type: str, *, diagnosis: str, references: Sequence[Reference]
    ) -> int:
        """Return how many rows of a type a statement changed. If a reference prevents it, name the line."""
        try:
            with self._connection.transaction():
                return change(record_type)
        except (psycopg.errors.ForeignKeyViolation, psycopg.errors.NotNullViolation):
            # A message without an activity has no case.
            self._refuse_reference(diagnosis, references)
            raise

    def _refuse_reference(self, diagnosis: str, references: Sequence[Reference]) -> None:
        """Raise LoadError for the first line with a broken reference, if there is one."""
        places = [(self._find(f"{diagnosis} {reference.name}"), reference.field) for reference in references]
        wrong = [(place, field) for place, field in places if place is not None]
        if not wrong:
            return
        place, field = min(wrong, key=lambda found: found[0])
        name, reason = _STILL_NEEDED if diagnosis == "find_still_needed" else (field, _NO_PARENT)
        raise self._error_at(place, name, reason) from None

    def _guard_signing_keys(self) -> None:
        """Lock out new keys of the organizations until the transaction ends, and let no line change an existing key."""
        with self._rows("list_organizations_with_staged_keys") as rows:
            for (organization_id,) in rows:
                self._execute("lock_organization", organization_id=organization_id)
        with self._rows("list_known_signing_keys") as rows:
            for place, *key in rows:
                try:
                    _StagedKey(*key).check(self._box)
                except FieldError as error:
                    if self._options.mode == "all":
                        raise self._error_at(place, error.field, error.reason) from None
                    self._wrong[place] = (error.field, error.reason)
        if self._options.mode == "each":
            self._execute("exclude_lines signing_keys", places=list(self._wrong))

    def _limit_live_keys(self) -> None:
        place = self._find("find_key_beyond_limit", maximum=MAXIMUM_LIVE_KEYS)
        if place is not None:
            reason = f"the organization would have more than {MAXIMUM_LIVE_KEYS} live signing keys"
            raise self._error_at(place, "id", reason)

    def _check_numbers_and_identities(self) -> None:
        for record_type, name in UNIQUE_FIELDS:
            column = f"{TABLES[record_type].name}.{name}"
            if record_type not in self._staged or self._is_unique(name):
                continue
            place = self._find(f"find_repeated {column}")
            if place is not None:
                raise self._error_at(place, name, _REPEATED[column])
            if not self._is_on_citus:
                raise LoadError(None, None, None, f"the database refuses a row ({column} is not unique)")

    def _find(self, diagnosis: str, **parameters: Any) -> int | None:
        """Return the place of the line that a statement finds."""
        found = self._execute(diagnosis, **parameters).fetchone()
        return None if found is None else int(found[0])

    def _error_at(self, place: int, field: str | None, reason: str) -> LoadError:
        if place == _UNNAMED:
            return LoadError(None, None, None, "nothing was loaded: rows refer to others that no line names")
        return LoadError(*self._source_of(place), field, reason)

    def _source_of(self, place: int) -> tuple[str, int]:
        source_number, line_number = divmod(place, 2**_LINE_BITS)
        return self._sources[source_number], line_number

    def _execute(self, statement: str, **parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        if monotonic() > self._deadline:
            # As if one statement took too long.
            raise psycopg.errors.QueryCanceled
        # Each runs once, and several statements in one text cannot be prepared.
        cursor = self._connection.cursor(row_factory=tuple_row)
        return cursor.execute(self._sql[statement], parameters or None, prepare=False)

    @property
    def _sql(self) -> Mapping[str, bytes]:
        return _SQL_ON_CITUS if self._is_on_citus else _SQL

    def _rows(self, statement: str, **parameters: Any) -> psycopg.ServerCursor[tuple[Any, ...]]:
        """Return the rows of a statement from a server-side cursor, so that they need not fit into memory."""
        return self._connection.cursor(statement, row_factory=tuple_row).execute(
            self._sql[statement], parameters or None
        )


class _InTheWayError(Exception):
    """Lines conflict with other rows, found only while writing."""

    def __init__(self, places: dict[int, tuple[str | None, str]]) -> None:
        super().__init__()
        self.places = places


_TYPES: Final = {record: record_type for record_type, record in RECORDS.items()}


def _row(record: Record | Removal, *, keeps_left_out: bool) -> tuple[str, tuple[Any, ...]]:
    """Return the type of a line, and its staged columns after its place."""
    if isinstance(record, Removal):
        held = {"id": record.id, "organization_id": record.organization_id, "updated_at": record.updated_at or None}
        return record.type, (True, 0, *map(held.get, TABLES[record.type].columns))
    absent = left_out(record) if keeps_left_out else 0
    return _TYPES[type(record)], (False, absent, *values(record))


def take_turns(connection: psycopg.Connection[Any], organizations: Iterable[str]) -> None:
    """Wait until no load of these organizations runs, and block others until the transaction ends."""
    keys = sorted({_turn_of(organization_id) for organization_id in organizations})
    connection.execute(_SQL["take_turns"], {"keys": keys}, prepare=False)


def _turn_of(organization_id: str) -> int:
    """Return the key of an organization's advisory lock. Two organizations may share one."""
    return int.from_bytes(UUID(organization_id).bytes[-4:], signed=True)


def _references(*, parent_type: str) -> list[Reference]:
    """Return the references that prevent the removal of a row of a type. A case's contents go with it."""
    return [one for one in REFERENCES if one.parent_type == parent_type and one.parent_type != "case"]


def _by_id(organizations: Mapping[str, int]) -> dict[UUID, int]:
    """Return the counts by id, whatever the spelling of the id."""
    counted: Counter[UUID] = Counter()
    for organization_id, number in organizations.items():
        counted[UUID(organization_id)] += number
    return dict(counted)


# Greater than the place of any line.
_UNNAMED: Final = 2**62
_TRIES: Final = 3
_NO_PARENT: Final = "there is no such row in this organization when all files are read"
_STILL_NEEDED: Final = ("deleted", "other rows still refer to this one when all files are read")
_ERASED: Final = (
    "external_id",
    "erased: the organization has erased this visitor, whom cases-service allow-visitor would let back in",
)
_OTHER_EVENT: Final = "another event of the organization has this position"
_NOT_CLOSED: Final = "a time is required: the case has not been closed yet"
_REPEATED: Final = {
    "cases.case_number": "another case of the organization has this number",
    "visitors.external_id": "another visitor of the organization has this identity",
}
_CHECKS: Final = {"case_number": "check_case_numbers", "external_id": "check_external_ids"}


class _StagedKey(NamedTuple):
    """A line with an existing signing key, and the stored key."""

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
        """Raise FieldError if the line changes the key, or would undo its retirement."""
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
        # Only `load` and create-key check the stored key material.
        return False


def _lines(file: LoadFile, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines of a file, each with its number. A line that is too long is cut."""
    for number in count(1):
        line = _line(file, number)
        if not line:
            return
        if number == 1:
            _refuse_other_forms(file, line)
        advance(len(line))
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip() or len(line) > MAXIMUM_LINE_BYTES:
            yield number, content
        while len(line) > MAXIMUM_LINE_BYTES and not line.endswith(b"\n"):
            line = _line(file, number)
            advance(len(line))


def _line(file: LoadFile, number: int) -> bytes:
    try:
        return file.stream.readline(MAXIMUM_LINE_BYTES + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise LoadError(file.name, number, None, "cannot be read (it is no gzip file, or a damaged one)") from None
    except OSError as error:
        raise LoadError(file.name, number, None, f"cannot be read ({error.strerror})") from None


# Files mistaken for NDJSON, by their first bytes.
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

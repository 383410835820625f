"""One load, inside its transaction: lines are staged, compared with what is stored, and written or removed."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from psycopg.rows import tuple_row

from cases_service.credentials.secret_encryption import NoSecretKeyError, SecretBox, SecretNotOpenedError
from cases_service.credentials.signing_keys import MAXIMUM_LIVE_KEYS
from cases_service.database.command_connection import is_citus, limit_waiting
from cases_service.database.migrations import DEFAULT_WAIT, lock_timeout
from cases_service.loading.conversations import StagedConversations
from cases_service.loading.erased_visitors import ErasedVisitors
from cases_service.loading.files import MAXIMUM_LINE_BYTES
from cases_service.loading.outcome import DEFAULT_OPTIONS, LineError, LoadError, LoadOptions, LoadSummary
from cases_service.loading.records import (
    RECORDS,
    FieldError,
    Record,
    Removal,
    SigningKey,
    left_out,
    organization_of,
    read_record,
    values,
)
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

REMOVABLE: Final = tuple(name for name, record in RECORDS.items() if record.removable)
"""The types of rows that a line can remove."""

SQL: Final = {name: text.encode() for name, text in STATEMENTS.items()}
_SQL_ON_CITUS: Final = {name: text.encode() for name, text in STATEMENTS_ON_CITUS.items()}
_BATCH_BYTES: Final = 2**20
_LINE_BITS: Final = 40


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
        options: LoadOptions = DEFAULT_OPTIONS,
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
        milliseconds = lock_timeout(deadline - monotonic())
        work._execute("limit_request", milliseconds=milliseconds)
        if work._is_on_citus:
            limit_waiting(connection, milliseconds=milliseconds)
        return work

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
            # The turn may take as long as another load does.
            limit_waiting(self._connection, milliseconds=lock_timeout(self._wait))
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
                with self._connection.cursor().copy(SQL[f"copy {TABLES[record_type].name}"]) as copy:
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
        return _SQL_ON_CITUS if self._is_on_citus else SQL

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
    connection.execute(SQL["take_turns"], {"keys": keys}, prepare=False)


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

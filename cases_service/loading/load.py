"""Loads lines of the load format into the database: all of them, or none and an error that names a line.

In mode `each`, right lines are stored and wrong ones are reported.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from time import monotonic
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import DEFAULT_WAIT, become_owner, list_holders
from cases_service.loading.files import LoadFile, lines_of
from cases_service.loading.outcome import DEFAULT_OPTIONS, LoadBusyError, LoadError, LoadOptions, LoadSummary
from cases_service.loading.runs import Run, begin, list_existing, record_run
from cases_service.loading.session import SQL
from cases_service.loading.staged_load import Load
from cases_service.loading.statements import TABLES


def _ignore(_bytes_read: int) -> None:
    pass


def load(
    connection: psycopg.Connection[Any],
    files: Sequence[LoadFile],
    *,
    box: SecretBox,
    options: LoadOptions = DEFAULT_OPTIONS,
    wait: float = DEFAULT_WAIT,
    advance: Callable[[int], None] = _ignore,
    rehearses: bool = False,
) -> LoadSummary:
    """Load files in one transaction, and update the planner's statistics of tables that changed a lot.

    The files are read once, from start to end, in memory that does not depend on their size. `advance` gets the number
    of bytes read since the last call. The connection must be in autocommit mode. `wait` is how many seconds to wait for
    a row or table that another session holds. With `rehearses`, everything is done except the commit.

    Raises:
        LoadError: A line is wrong in mode `all`, or a file cannot be read. Nothing has been loaded.
        LoadBusyError: The wait timed out. Nothing has been loaded.
        psycopg.OperationalError: The database went away. Nothing has been loaded, unless at the very end.

    """

    def stage(work: Load) -> None:
        for file in files:
            work.stage(file.name, lines_of(file, advance))

    return _load(connection, stage, box=box, options=options, wait=wait, rehearses=rehearses)


def load_lines(
    connection: psycopg.Connection[Any],
    source: str,
    lines: Iterable[tuple[int, bytes]],
    *,
    box: SecretBox,
    options: LoadOptions = DEFAULT_OPTIONS,
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
        lines = lines_of(file, advance)
        while batch := list(islice(lines, size)):
            yield file.name, batch


def load_in_batches(
    connection: psycopg.Connection[Any],
    files: Iterable[LoadFile],
    *,
    size: int,
    box: SecretBox,
    options: LoadOptions = DEFAULT_OPTIONS,
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
        raise type(error)(error.file, error.line, error.field, reason) from None
    finally:
        if not connection.closed:
            with connection.transaction():
                begin(connection)
                _record(connection, done, seconds=monotonic() - started)
    return done


def _record(connection: psycopg.Connection[Any], summary: LoadSummary, *, seconds: float) -> None:
    """Record the result of a load for each of its organizations, in the current transaction."""
    duration_ms = round(seconds * 1000)
    is_one = len(summary.organizations) == 1
    for organization_id in list_existing(connection, summary.organizations):
        counts = summary.organizations[organization_id]
        if is_one:
            # The lines that name no organization are its own, too.
            counts = replace(counts, lines=summary.lines, wrong=summary.error_count)
        run = Run(organization_id=organization_id, source="load", duration_ms=duration_ms, **asdict(counts))
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
        raise LoadBusyError(None, None, None, "a node refused the commit, or did not answer it: try again") from None
    except psycopg.errors.LockNotAvailable:
        holders = ", ".join(list_holders(connection)) or "another session"
        raise LoadBusyError(None, None, None, f"gave up waiting for {holders}: nothing was loaded, try again") from None
    if rehearses:
        return summary
    changed = {table.name: summary.written[name] + summary.removed[name] for name, table in TABLES.items()}
    due = [table for table, rows in changed.items() if rows and _is_analyze_due(connection, table, rows)]
    left = [table for table in due if not update_statistics(connection, SQL[f"analyze {table}"])]
    return replace(summary, without_statistics=left)


def _is_analyze_due(connection: psycopg.Connection[Any], table: str, changed: int) -> bool:
    cursor = connection.cursor(row_factory=tuple_row)
    row = cursor.execute(SQL[f"is_analyze_due {table}"], {"changed": changed}, prepare=False).fetchone()
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

"""Loads standard input as it arrives, and reports each commit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import psycopg

from cases_service.cli.output import show_json
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.loading.follow import Batch, LineFeed
from cases_service.loading.kept_lines import shown
from cases_service.loading.load import load_lines
from cases_service.loading.outcome import LoadOptions, LoadSummary


def follow(
    connection: psycopg.Connection[Any],
    descriptor: int,
    *,
    size: int,
    seconds: float,
    box: SecretBox,
    options: LoadOptions,
    wait: float,
    report: TextIO | None,
) -> Iterator[LoadSummary]:
    """Load lines until they end, or SIGTERM comes: then what is complete is loaded, and that is the end.

    A commit is told on standard output by a line of JSON: how many lines of the input are behind it, and what became of
    those of the batch. The batch's wrong lines are in the report before that. Yields what each batch came to.

    Raises:
        LoadError: A line is wrong in mode `all`. Of its batch nothing has been loaded.
        psycopg.OperationalError: The database went away. What was not told may have been loaded, or not.

    """
    with _stop_by_signal() as stop:
        for batch in LineFeed(descriptor, size=size, seconds=seconds, stop=stop).batches():
            given: dict[str, Any] = {"box": box, "options": options, "wait": wait}
            summary = load_lines(connection, "standard input", batch.lines, **given)
            if report is not None:
                _write_errors(report, summary, batch)
            show_json(_told(summary, through=batch.through))
            yield summary


def _write_errors(report: TextIO, summary: LoadSummary, batch: Batch) -> None:
    lines = dict(batch.lines)
    for error in summary.errors:
        show_json(error._asdict() | shown(lines[error.line]), file=report)
    report.flush()


def _told(summary: LoadSummary, *, through: int) -> dict[str, int]:
    return {
        "committed": through,
        "written": sum(summary.written.values()),
        "removed": sum(summary.removed.values()),
        "unchanged": summary.unchanged,
        "stale": summary.stale,
        "wrong": summary.error_count,
    }


@contextmanager
def _stop_by_signal() -> Iterator[int]:
    """Give a descriptor that becomes readable when SIGTERM comes. What is being done meanwhile is done to its end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, lambda *_: os.write(writer, b"."))
    try:
        yield reader
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(reader)
        os.close(writer)

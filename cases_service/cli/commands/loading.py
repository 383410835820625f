"""The command `load`: its modes, which options can be combined, and its output."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from cases_service.cli.connection import connected
from cases_service.cli.files import opened, standard_input
from cases_service.cli.group import NAME, cli
from cases_service.cli.options import wait_option
from cases_service.cli.output import counted, show_json
from cases_service.terminal import printable

if TYPE_CHECKING:
    import psycopg

    from cases_service.credentials.secret_encryption import SecretBox
    from cases_service.loading.files import LineStream
    from cases_service.loading.kept_lines import KeptLines
    from cases_service.loading.outcome import LineError, LoadOptions, LoadSummary

_APART: Final = (
    ("--follow", "--snapshot"),
    ("--follow", "--check"),
    ("--snapshot", "--check"),
    ("--snapshot", "--batch"),
    ("--check", "--batch"),
    ("--each", "--snapshot"),
)
"""Options that cannot be combined."""

_PARTS: Final = (("--errors", "--each"), ("--interval", "--follow"), ("--max-removals", "--snapshot"))
"""Options that need another one."""

_LINES_FOLLOWED: Final = 1_000
_INTERVAL_SECONDS: Final = 1.0
_MAXIMUM_REMOVALS: Final = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The options of one call of `load`, by name."""

    files: tuple[str, ...]
    wait: float
    each: bool
    errors: str | None
    if_newer: bool
    keep_left_out: bool
    as_json: bool
    batch: int | None
    follow: bool
    interval: float | None
    snapshot: bool
    max_removals: float | None
    check: bool

    def has(self, option: str) -> bool:
        """Tell whether an option was given."""
        value = getattr(self, option.removeprefix("--").replace("-", "_"))
        return value is not None and value is not False

    def refuse_contradictions(self) -> None:
        """Refuse options that cannot be combined, or that need another one."""
        for one, other in _APART:
            if self.has(one) and self.has(other):
                raise click.UsageError(f"{one} and {other} do not go together.")
        for part, whole in _PARTS:
            if self.has(part) and not self.has(whole):
                raise click.UsageError(f"{part} belongs to {whole}.")
        if self.follow and self.files != ("-",):
            raise click.UsageError("--follow reads standard input: name - and no other file.")

    def options(self) -> "LoadOptions":
        """Return the options of the load. To report every error, `--check` checks each line by itself."""
        from cases_service.loading.outcome import MAXIMUM_ERRORS, LoadOptions

        percent = _MAXIMUM_REMOVALS if self.max_removals is None else self.max_removals
        return LoadOptions(
            mode="each" if self.each or self.check else "all",
            if_newer=self.if_newer,
            keeps_left_out=self.keep_left_out,
            maximum_errors=None if self.check or self.errors is not None else MAXIMUM_ERRORS,
            maximum_removals=percent / 100 if self.snapshot else None,
        )


@cli.command("load")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
)
@wait_option
@click.option("--each", "each", is_flag=True, help="Load the right lines and report the wrong ones.")
@click.option(
    "--errors",
    "errors",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="With --each: write the wrong lines and their errors to FILE.",
)
@click.option("--if-newer", is_flag=True, help="Skip a line unless it is newer than its stored case or contact.")
@click.option("--keep-left-out", is_flag=True, help="Keep the stored values of fields missing from a line.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1_000_000),
    metavar="LINES",
    help="Commit after every LINES lines, instead of once; 1,000 with --follow.",
)
@click.option("--follow", "follow", is_flag=True, help="Load standard input as it arrives, and report each commit.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0, max=3600),
    metavar="SECONDS",
    help="With --follow: how long a line waits for more; 1 by default.",
)
@click.option("--snapshot", is_flag=True, help="Remove rows that the files do not name, for the organizations in them.")
@click.option(
    "--max-removals",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="Load nothing if --snapshot would remove more of a type; 10 by default.",
)
@click.option("--check", "check", is_flag=True, help="Do everything except commit, and report every error.")
def load_files(**given: Any) -> None:
    """Load cases and their related rows from NDJSON.

    Each line is one object with its type and fields; docs/load.md describes them. A line replaces the row
    with the same id. All files are loaded, or none; with --each, every right line is loaded, and the exit
    status is 1 if any line was wrong. FILE may be - for standard input; a .gz file is decompressed.

    \b
    Example:
      cases-service load organization.ndjson export.ndjson.gz
      cases-service load --each --errors wrong.ndjson --if-newer changes.ndjson
    To load what a relay writes, without end:
      relay | cases-service load --follow -
    To load a whole export, and remove what is no longer in it:
      cases-service load --snapshot export.ndjson.gz
    """
    call = _Call(**given)
    call.refuse_contradictions()
    with connected() as (connection, box):
        if call.follow:
            _follow(connection, box, call)
            return
        summary = _load_files(connection, box, call)
    if call.check:
        _say_what_is_wrong(summary, as_json=call.as_json)
    else:
        _say_what_was_done(summary, call)


def _follow(connection: "psycopg.Connection[Any]", box: "SecretBox", call: _Call) -> None:
    from cases_service.cli.following import follow

    wrong = 0
    with ExitStack() as stack:
        commits = follow(
            connection,
            standard_input().fileno(),
            size=call.batch or _LINES_FOLLOWED,
            seconds=_INTERVAL_SECONDS if call.interval is None else call.interval,
            box=box,
            options=call.options(),
            wait=call.wait,
            # Wrong lines of an earlier call are still to be looked at.
            report=None if call.errors is None else stack.enter_context(Path(call.errors).open("a", encoding="utf-8")),
        )
        for done in commits:
            wrong += done.error_count
            if call.errors is None:
                _echo_errors(done.errors)
    _fail_for_wrong_lines(wrong)


def _load_files(connection: "psycopg.Connection[Any]", box: "SecretBox", call: _Call) -> "LoadSummary":
    from cases_service.loading.files import LoadFile
    from cases_service.loading.kept_lines import KeptLines
    from cases_service.loading.load import load, load_in_batches

    given: dict[str, Any] = {"box": box, "options": call.options(), "wait": call.wait}
    names = ["standard input" if name == "-" else name for name in call.files]
    with ExitStack() as stack:
        report = None if call.errors is None else stack.enter_context(Path(call.errors).open("w", encoding="utf-8"))
        streams: Sequence[LineStream] = [stack.enter_context(opened(name)) for name in call.files]
        kept = [] if report is None else [stack.enter_context(KeptLines(stream)) for stream in streams]
        named = [LoadFile(name, stream) for name, stream in zip(names, kept or streams, strict=True)]
        bar = stack.enter_context(_progress(call.files))
        if call.batch is None:
            summary = load(connection, named, advance=bar.update, rehearses=call.check, **given)
        else:
            summary = load_in_batches(connection, named, size=call.batch, advance=bar.update, **given)
        if report is not None:
            _write_errors(report, summary, dict(zip(names, kept, strict=True)))
    return summary


def _progress(files: tuple[str, ...]) -> Any:
    """Return a progress bar, disabled without a terminal; it has a total if all sizes are known."""
    from tqdm import tqdm

    has_size = all(name != "-" and not name.endswith(".gz") and Path(name).is_file() for name in files)
    total = sum(Path(name).stat().st_size for name in files) if has_size else None
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False)


def _write_errors(report: TextIO, summary: "LoadSummary", kept: dict[str, "KeptLines"]) -> None:
    """Write each wrong line as JSON: its position, its error and its text."""
    for name, lines in kept.items():
        wrong = {error.line: error for error in summary.errors if error.file == name}
        for number, text in lines.read(wrong):
            show_json(wrong[number]._asdict() | text, file=report)


def _say_what_is_wrong(summary: "LoadSummary", *, as_json: bool) -> None:
    """Report a check: every error, in JSON, too."""
    if as_json:
        show_json(summary.as_dict())
    else:
        _echo_errors(summary.errors, prefix=f"{NAME}: ")
    if summary.error_count:
        raise click.ClickException(f"{counted(summary.error_count, 'wrong line')}: nothing was loaded")
    if not as_json:
        click.echo(f"{counted(summary.lines, 'line')}: all right, and nothing was loaded")


def _say_what_was_done(summary: "LoadSummary", call: _Call) -> None:
    from cases_service.loading.outcome import MAXIMUM_ERRORS

    summary = dataclasses.replace(summary, errors=summary.errors[:MAXIMUM_ERRORS])
    if call.as_json:
        show_json(summary.as_dict())
    else:
        click.echo(_summary(summary))
    if call.errors is None and not call.as_json:
        _echo_errors(summary.errors)
    if summary.without_statistics:
        tables = ", ".join(summary.without_statistics)
        advice = "have their owner run analyze, or wait for autovacuum"
        click.echo(f"the planner knows nothing new of {tables}: {advice}", err=True)
    _fail_for_wrong_lines(summary.error_count)


def _echo_errors(found: Sequence["LineError"], *, prefix: str = "") -> None:
    from cases_service.loading.outcome import LoadError

    for error in found:
        click.echo(prefix + printable(str(LoadError(*error))), err=True)


def _fail_for_wrong_lines(count: int) -> None:
    if count:
        raise click.ClickException(f"{counted(count, 'line')} wrong; what is right was loaded")


def _summary(summary: "LoadSummary") -> str:
    written, removed = (
        ", ".join(counted(count, name.replace("_", " ")) for name, count in counts.items() if count)
        for counts in (summary.written, summary.removed)
    )
    stale, wrong = (
        f"{count:,} {word}" if count else ""
        for count, word in ((summary.stale, "stale"), (summary.error_count, "wrong"))
    )
    changes = "; ".join(part for part in (written, removed and f"removed {removed}", stale, wrong) if part)
    return f"{counted(summary.lines, 'line')}: {changes or 'nothing changed'}"

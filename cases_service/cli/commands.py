"""The command line: what each command takes, what it says, and the one line that a failure is."""

# ruff: noqa: D301  click wants a real backspace above the lines that it must not fold

import dataclasses
import errno
import gzip
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, TextIO, cast
from uuid import UUID

import click

from cases_service import __version__
from cases_service.cases import timestamps as instants
from cases_service.cli.option_types import (
    accepting,
    parse_address,
    parse_description,
    parse_external_id,
    parse_future_time,
    parse_id,
    parse_url,
)
from cases_service.cli.standard_streams import finish_output, is_input_open
from cases_service.credentials.algorithms import ALGORITHMS, HMAC_ALGORITHMS
from cases_service.credentials.scopes import DEFAULT_SCOPES, SCOPES
from cases_service.terminal import printable

# A completion runs this module at each press of the key. What a command needs, it imports itself.
if TYPE_CHECKING:
    import psycopg

    from cases_service.credentials.secret_encryption import SecretBox
    from cases_service.embedded.command_database import CommandDatabase
    from cases_service.loading.kept_lines import KeptLines
    from cases_service.loading.load import LoadSummary
    from cases_service.store.cases import StoredKey

_NAME: Final = "cases-service"
_FAILURE: Final = 1
_MAY_PASS: Final = 75  # EX_TEMPFAIL of sysexits.h: the database is away, busy or read-only
_WAIT_SECONDS: Final = 60.0
_FOLLOWED: Final = 1_000
_WRONG_CALL: Final = 2
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143
_LABEL_WIDTH: Final = 14
_STATUS_WIDTH: Final = 9

organization_option = click.option(
    "--organization",
    "organization_id",
    required=True,
    metavar="ID",
    callback=accepting(parse_id),
    help="The organization's id.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program to read.")
bind_option = click.option(
    "--bind",
    metavar="HOST:PORT",
    callback=accepting(parse_address),
    help="The address to listen on, instead of CASES_BIND; or unix:/PATH.",
)


def main() -> NoReturn:
    """Run the command that the arguments name, and end the process with its status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    status = run(sys.argv[1:])
    if (error := finish_output()) is not None and status == 0:
        click.echo(f"{_NAME}: {_last_words(error)}", err=True)
        status = _FAILURE
    # The work is done, and what ends the interpreter is not prepared for an exception.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    try:
        status: int | None = cli.main(arguments, prog_name=_NAME, standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  a command's last words are one line, whatever happens
        click.echo(f"{_NAME}: {printable(' '.join(_last_words(error).split()))}", err=True)
        return _status_of(error)
    return status or 0


def _status_of(error: Exception) -> int:
    import psycopg

    from cases_service.database.migrations import SchemaBusyError

    if isinstance(error, click.UsageError):
        return _WRONG_CALL
    may_pass = psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, SchemaBusyError
    return _MAY_PASS if isinstance(error, may_pass) else _FAILURE


def _last_words(error: Exception) -> str:
    import psycopg

    from cases_service.embedded.command_database import explain

    match error:
        case click.UsageError():
            command = _NAME if error.ctx is None else error.ctx.command_path
            words = f"{error.format_message().rstrip('.')} (see {command} --help)"
        case click.ClickException():
            words = error.format_message()
        case psycopg.Error():
            words = explain(error)
        case OSError(errno=errno.EBADF, filename=None):
            words = "standard input or output is closed"
        case OSError():
            words = f"{error.filename or 'input or output'}: {error.strerror}"
        case _ if isinstance(error, _explained()):
            words = str(error)
        case _:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}:{frame.lineno}"
            words = f"unexpected {type(error).__name__} at {place}: please report it"
    return words


def _explained() -> tuple[type[Exception], ...]:
    """Return what says in its message, in one line, what is wrong and what to do."""
    from cases_service.credentials.administration import AdministrationError
    from cases_service.credentials.secret_encryption import NoSecretKeyError
    from cases_service.credentials.signing_keys import KeyMaterialError
    from cases_service.database.migrations import SchemaError
    from cases_service.demo.demo import DemoError
    from cases_service.embedded.command_database import NoDatabaseError
    from cases_service.embedded.data_directory import ForeignDirectoryError
    from cases_service.embedded.server import EmbeddedServerError
    from cases_service.loading.load import LoadError
    from cases_service.server.launch import ListenError
    from cases_service.settings import SettingsError

    return (
        AdministrationError,
        DemoError,
        EmbeddedServerError,
        ForeignDirectoryError,
        KeyMaterialError,
        ListenError,
        LoadError,
        NoDatabaseError,
        NoSecretKeyError,
        SchemaError,
        SettingsError,
    )


@contextmanager
def _database(*, may_make: bool = False) -> Iterator["CommandDatabase"]:
    from cases_service.embedded.command_database import open_database
    from cases_service.settings import read_settings

    with open_database(read_settings(), may_make=may_make) as database:
        yield database


@contextmanager
def _connection() -> Iterator[tuple["psycopg.Connection[Any]", "SecretBox"]]:
    """Lend a connection to a database that has the schema, and what opens its secrets."""
    from cases_service.credentials.secret_encryption import SecretBox

    with _database() as database, database.connect() as connection:
        yield connection, SecretBox(database.settings.secret_keys)


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message=f"{_NAME} %(version)s")
def cli() -> None:
    """Serve a company's signed-in customers their own support cases.

    DATABASE_URL names the PostgreSQL to use. Without it, an embedded server keeps its data in
    CASES_DATA_DIR (.cases-data); commands that run at the same time share it.

    \b
    To look at it, with real data:
      cases-service demo
    To start with cases of your own:
      cases-service init-db
      cases-service load cases.ndjson
      cases-service list-organizations
      cases-service create-token --organization ID --user ID
      cases-service create-key --organization ID
      cases-service serve
    When something is wrong:
      cases-service doctor
    """


@cli.command()
@bind_option
def serve(bind: str | None) -> None:
    """Serve the API.

    Starts without a database too, and answers 503 until it is there. Without DATABASE_URL, the
    embedded server is started and given its schema first.

    \b
    Example:
      DATABASE_URL=postgresql://cases@db/cases cases-service serve --bind 0.0.0.0:8000
    """
    import msgspec

    from cases_service.embedded.command_database import open_database
    from cases_service.server.launch import become_gunicorn, listen_as_set
    from cases_service.settings import read_settings

    settings = read_settings()
    settings, listeners = listen_as_set(msgspec.structs.replace(settings, bind=bind or settings.bind))
    with open_database(settings, may_make=True) as database:
        if database.embedded is not None:
            database.initialize()
        become_gunicorn(database.settings, listeners, embedded=database.embedded)


@cli.command()
@bind_option
def demo(bind: str | None) -> None:
    """Serve real data, with a page and curl lines.

    Needs no database and no configuration: it brings a PostgreSQL and public data. They are kept in
    CASES_DATA_DIR (.cases-data) and used again the next time. The page is a hundred ports further on, or
    where there is one free. Ctrl-C ends everything.

    \b
    Example, a second demo beside the first:
      CASES_DATA_DIR=/tmp/second cases-service demo --bind 127.0.0.1:8001
    """
    import msgspec

    from cases_service.demo.demo import run_demo
    from cases_service.settings import read_settings

    settings = read_settings()
    run_demo(msgspec.structs.replace(settings, bind=bind or settings.bind))


@cli.command("init-db")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, max=86400),
    default=_WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a session that holds a table.",
)
def init_db(wait: float) -> None:
    """Create the schema, or upgrade an older one.

    Safe to repeat, and while the service runs: a table is locked for a moment only, and tried again where
    somebody holds it. What was done is kept, and the next call goes on from there. Where
    CASES_ADMIN_DATABASE_URL is set, the role of DATABASE_URL gets the rights to serve.

    \b
    Example:
      DATABASE_URL=postgresql://cases@db/cases cases-service init-db
    """
    with _database(may_make=True) as database:
        before, after = database.initialize(wait=wait, say=partial(click.echo, err=True))
    click.echo(f"schema version {after}" + ("" if before in (0, after) else f", upgraded from {before}"))


@cli.command("load")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, max=86400),
    default=_WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a session that holds a row or table.",
)
@click.option("--each", "by_line", is_flag=True, help="Load the right lines and report the wrong ones.")
@click.option(
    "--errors",
    "errors_file",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="With --each: write the wrong lines, with what is wrong, to FILE.",
)
@click.option("--if-newer", is_flag=True, help="Leave a case or contact alone that is as new as its line, or newer.")
@click.option("--keep-left-out", is_flag=True, help="Let a field that a line leaves out stay as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1_000_000),
    metavar="LINES",
    help="Commit after so many lines, instead of all at once; 1,000 with --follow.",
)
@click.option("--follow", "follows", is_flag=True, help="Load standard input as it comes, and tell each commit.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0, max=3600),
    metavar="SECONDS",
    help="How long a line waits for others with --follow; 1 by default.",
)
@click.option("--snapshot", is_flag=True, help="Remove what the files do not name, of the organizations in them.")
@click.option(
    "--max-removals",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="Load nothing where --snapshot would remove more of a type; 10 by default.",
)
@click.option("--check", "checks", is_flag=True, help="Do everything but the commit, and name every error.")
def load_files(  # noqa: C901, PLR0912, PLR0915  one command, several ways to load
    files: tuple[str, ...],
    *,
    wait: float,
    by_line: bool,
    errors_file: str | None,
    if_newer: bool,
    keep_left_out: bool,
    as_json: bool,
    batch: int | None,
    follows: bool,
    interval: float | None,
    snapshot: bool,
    max_removals: float | None,
    checks: bool,
) -> None:
    """Load cases, and all that belongs to them, from NDJSON.

    A line is one object with its type and fields; docs/load.md describes them. A line whose id exists
    replaces that row. All files are loaded, or none; with --each, every line that is right, and the exit
    status is 1 where others were not. FILE may be - for standard input; one that ends in .gz is unpacked.

    \b
    Example:
      cases-service load organization.ndjson export.ndjson.gz
      cases-service load --each --errors wrong.ndjson --if-newer changes.ndjson
    To load what a relay writes, without end:
      relay | cases-service load --follow -
    To load a whole export, and remove what is no longer in it:
      cases-service load --snapshot export.ndjson.gz
    """
    from cases_service.cli.following import follow
    from cases_service.loading.kept_lines import KeptLines
    from cases_service.loading.load import (
        MAXIMUM_ERRORS,
        LineStream,
        LoadError,
        LoadFile,
        LoadOptions,
        load,
        load_in_batches,
    )

    if errors_file is not None and not by_line:
        raise click.UsageError("--errors is for --each: without it, the first wrong line ends the load.")
    _check_load(
        files,
        {"--follow": follows, "--snapshot": snapshot, "--check": checks, "--batch": batch is not None},
        {"--interval": interval is not None, "--max-removals": max_removals is not None},
    )
    if by_line and (snapshot or checks):
        raise click.UsageError(f"--each and {'--snapshot' if snapshot else '--check'} do not go together.")
    if follows and errors_file is not None:
        raise click.UsageError("--follow and --errors do not go together.")
    share = 10.0 if max_removals is None else max_removals
    options = LoadOptions(
        mode="each" if by_line or checks else "all",
        if_newer=if_newer,
        keeps_left_out=keep_left_out,
        maximum_errors=None if checks or errors_file is not None else MAXIMUM_ERRORS,
        maximum_removals=share / 100 if snapshot else None,
    )
    with ExitStack() as stack:
        connection, box = stack.enter_context(_connection())
        if follows:
            given: dict[str, Any] = {"box": box, "options": options, "wait": wait}
            seconds = 1.0 if interval is None else interval
            source, wrong = _standard_input().fileno(), 0
            for done in follow(connection, source, size=batch or _FOLLOWED, seconds=seconds, **given):
                wrong += done.error_count
                for error in done.errors:
                    click.echo(printable(str(LoadError(*error))), err=True)
            if wrong:
                raise click.ClickException(f"{_counted(wrong, 'line')} wrong; what is right was loaded")
            return
        report = None if errors_file is None else stack.enter_context(Path(errors_file).open("w", encoding="utf-8"))
        opened = [stack.enter_context(_opened(name)) for name in files]
        names = ["standard input" if name == "-" else name for name in files]
        kept = None if report is None else [stack.enter_context(KeptLines(file)) for file in opened]
        streams: Sequence[LineStream] = opened if kept is None else kept
        named = [LoadFile(name, stream) for name, stream in zip(names, streams, strict=True)]
        with _progress(files) as bar:
            if batch is None:
                summary = load(
                    connection, named, box=box, options=options, wait=wait, advance=bar.update, rehearses=checks
                )
            else:
                summary = load_in_batches(
                    connection, named, size=batch, box=box, options=options, wait=wait, advance=bar.update
                )
        if report is not None and kept is not None:
            _write_errors(report, summary, dict(zip(names, kept, strict=True)))
    if checks:
        for error in summary.errors:
            click.echo(f"{_NAME}: {printable(str(LoadError(*error)))}", err=True)
        if summary.error_count:
            raise click.ClickException(f"{_counted(summary.error_count, 'wrong line')}: nothing was loaded")
        click.echo(f"{_counted(summary.lines, 'line')}: all right, and nothing was loaded")
        return
    summary = dataclasses.replace(summary, errors=summary.errors[:MAXIMUM_ERRORS])
    click.echo(json.dumps(summary.as_dict()) if as_json else _summary(summary))
    if report is None and not as_json:
        for error in summary.errors:
            place = f"{error.file}:{error.line}"
            click.echo(": ".join(part for part in (place, error.field, error.detail) if part), err=True)
    if summary.without_statistics:
        tables = ", ".join(summary.without_statistics)
        click.echo(
            f"the planner knows nothing new of {tables}: have their owner run analyze, or wait for", nl=False, err=True
        )
        click.echo(" autovacuum", err=True)
    if summary.error_count:
        raise click.ClickException(f"{_counted(summary.error_count, 'line')} wrong; what is right was loaded")


def _write_errors(report: TextIO, summary: "LoadSummary", kept: dict[str, "KeptLines"]) -> None:
    """Write each wrong line as JSON: where it stands, what is wrong, and what it is."""
    for name, lines in kept.items():
        wrong = {error.line: error for error in summary.errors if error.file == name}
        for number, text in lines.read(wrong):
            click.echo(json.dumps(wrong[number]._asdict() | text), file=report)


def _check_load(files: tuple[str, ...], ways: dict[str, bool], details: dict[str, bool]) -> None:
    """Refuse ways to load that do not go together, and options that belong to another way."""
    chosen = [name for name, is_chosen in ways.items() if is_chosen]
    if len(chosen) > 1 and set(chosen) != {"--follow", "--batch"}:
        raise click.UsageError(f"{chosen[0]} and {chosen[1]} do not go together.")
    for detail, way in (("--interval", "--follow"), ("--max-removals", "--snapshot")):
        if details[detail] and not ways[way]:
            raise click.UsageError(f"{detail} belongs to {way}.")
    if ways["--follow"] and files != ("-",):
        raise click.UsageError("--follow reads standard input: name - and no other file.")


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield _standard_input()
    elif name.endswith(".gz"):
        with gzip.open(name) as unpacked:
            yield cast("BinaryIO", unpacked)
    else:
        with Path(name).open("rb") as file:
            yield file


def _standard_input() -> BinaryIO:
    if not is_input_open():
        raise click.UsageError("standard input is closed: name a file, or pipe something in.")
    return sys.stdin.buffer


def _progress(files: tuple[str, ...]) -> Any:
    """Return a progress bar on a terminal, and elsewhere what does nothing; total where all sizes are known."""
    from tqdm import tqdm

    has_size = all(name != "-" and not name.endswith(".gz") and Path(name).is_file() for name in files)
    total = sum(Path(name).stat().st_size for name in files) if has_size else None
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False)


def _summary(summary: "LoadSummary") -> str:
    written, removed = (
        ", ".join(_counted(count, name.replace("_", " ")) for name, count in counts.items() if count)
        for counts in (summary.written, summary.removed)
    )
    stale, wrong = (
        f"{count:,} {word}" if count else ""
        for count, word in ((summary.stale, "stale"), (summary.error_count, "wrong"))
    )
    changes = "; ".join(part for part in (written, removed and f"removed {removed}", stale, wrong) if part)
    return f"{_counted(summary.lines, 'line')}: {changes or 'nothing changed'}"


def _show(things: Sequence[Any], *, as_json: bool) -> None:
    """Print what was listed: as an array of objects, or as a table with a line of headings."""
    rows = [{name: _shown(value) for name, value in dataclasses.asdict(thing).items()} for thing in things]
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _cell(value: str | list[str] | None) -> str:
    return printable((",".join(value) if isinstance(value, list) else value) or "-")


def _shown(value: object) -> str | list[str] | None:
    if isinstance(value, datetime):
        return instants.from_datetime(value)
    if isinstance(value, list):
        return value
    return None if value is None else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@cli.command("list-organizations")
@json_option
def list_organizations(as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show all organizations with their ids.

    \b
    Example:
      cases-service list-organizations
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        _show(administration.list_organizations(connection), as_json=as_json)


@cli.command("list-users")
@organization_option
@json_option
def list_users(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's users with their ids.

    \b
    Example:
      cases-service list-users --organization ID
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        _show(administration.list_users(connection, organization_id=organization_id), as_json=as_json)


@cli.command("create-token")
@organization_option
@click.option("--user", "user_id", required=True, metavar="ID", callback=accepting(parse_id), help="Whose token it is.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=DEFAULT_SCOPES,
    show_default=True,
    help="What it may do; may be repeated.",
)
@click.option(
    "--description",
    metavar="TEXT",
    callback=accepting(parse_description),
    help="What it is for, 1 to 256 characters.",
)
@click.option(
    "--expires-at",
    metavar="TIME",
    callback=accepting(parse_future_time),
    help="When it ends, in ISO 8601 with a zone. Default: when it is revoked.",
)
def create_token(
    organization_id: UUID,
    user_id: UUID,
    scopes: tuple[str, ...],
    description: str | None,
    expires_at: datetime | None,
) -> None:
    """Make an API token, and print it.

    It is printed this once, and kept nowhere. The token stands alone on standard output. Its id, which
    revoke-token takes, is on standard error.

    A token can do what its scopes name, and nothing else: visitors:read shows visitors their cases,
    cases:read and cases:write are for the system that holds the organization's cases (writing includes
    reading).

    \b
    Examples:
      cases-service create-token --organization ID --user ID --scope cases:write
      cases-service create-token --organization ID --user ID --expires-at 2030-01-31T12:00:00Z
    """
    from cases_service.credentials import administration

    # Printed before it is there: a token that could not be printed is not made.
    with _connection() as (connection, _), connection.transaction():
        token_id, token = administration.create_token(
            connection,
            organization_id=organization_id,
            user_id=user_id,
            scopes=scopes,
            description=description,
            expires_at=expires_at,
        )
        click.echo(f"token id: {token_id}", err=True)
        click.echo(token)


@cli.command("revoke-token")
@organization_option
@click.argument("token_id", metavar="TOKEN_ID", callback=accepting(parse_id))
def revoke_token(organization_id: UUID, token_id: UUID) -> None:
    """End an API token, from the next request on.

    TOKEN_ID is what create-token said on standard error, not the token.

    \b
    Example:
      cases-service revoke-token --organization ID TOKEN_ID
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        administration.revoke_token(connection, organization_id=organization_id, token_id=token_id)


@cli.command("list-tokens")
@organization_option
@json_option
def list_tokens(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's API tokens.

    Also when each was last used, which is written down once a minute at the most. Neither a token nor its
    hash is shown.

    \b
    Example:
      cases-service list-tokens --organization ID
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        _show(administration.list_tokens(connection, organization_id=organization_id), as_json=as_json)


@cli.command("create-key")
@organization_option
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    default="HS256",
    show_default=True,
    help="How JWTs are signed.",
)
@click.option(
    "--public-key",
    "public_key_file",
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="The public key in PEM: for RS, ES and EdDSA, whose private key stays with you.",
)
def create_key(organization_id: UUID, algorithm: str, public_key_file: Path | None) -> None:
    """Make a signing key for visitors' JWTs, and print it.

    It is printed as JSON, this once. An HMAC key (HS256, HS384, HS512) is made here, with its secret. For
    the other algorithms, register the public key. Up to 10 keys may be live, so that a new one can
    replace an old one without a gap.

    \b
    Examples:
      cases-service create-key --organization ID
      cases-service create-key --organization ID --algorithm ES256 --public-key es256.pem
    """
    from cases_service.credentials import administration

    if (algorithm in HMAC_ALGORITHMS) != (public_key_file is None):
        needs = "takes no --public-key" if public_key_file else "needs a --public-key"
        raise click.UsageError(f"--algorithm {algorithm} {needs}.")
    public_key = None if public_key_file is None else public_key_file.read_bytes().decode("ascii", "replace")
    # Printed before it is there: a key whose secret could not be printed is not made.
    with _connection() as (connection, box), connection.transaction():
        key = administration.create_key(
            connection, organization_id=organization_id, algorithm=algorithm, public_key=public_key, box=box
        )
        shown = {"kid": str(key.kid), "algorithm": key.algorithm, "secret": key.secret}
        click.echo(json.dumps({name: value for name, value in shown.items() if value is not None}))


@cli.command("retire-key")
@organization_option
@click.argument("kid", metavar="KID", callback=accepting(parse_id))
def retire_key(organization_id: UUID, kid: UUID) -> None:
    """End a signing key, from the next request on.

    \b
    Example:
      cases-service retire-key --organization ID KID
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        administration.retire_key(connection, organization_id=organization_id, key_id=kid)


@cli.command("list-keys")
@organization_option
@json_option
def list_keys(organization_id: UUID, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Show an organization's signing keys.

    Also when each was last used, which is written down once a minute at the most: a key that nobody used
    for some time is safe to retire. No secret is shown.

    \b
    Example:
      cases-service list-keys --organization ID
    """
    from cases_service.credentials import administration

    with _connection() as (connection, _):
        _show(administration.list_keys(connection, organization_id=organization_id), as_json=as_json)


@cli.command("rotate-secrets")
def rotate_secrets() -> None:
    """Encrypt the stored secrets with a new secret key.

    All signing secrets are encrypted anew with the first of the keys in CASES_SECRET_KEY.

    \b
    To replace a secret key:
      1. run serve with CASES_SECRET_KEY=NEW,OLD
      2. CASES_SECRET_KEY=NEW,OLD cases-service rotate-secrets
      3. run serve with CASES_SECRET_KEY=NEW
    """
    from cases_service.credentials import administration

    with _connection() as (connection, box):
        count = administration.rotate_secrets(connection, box=box)
    click.echo(f"{_counted(count, 'secret')} encrypted with the first secret key")


@cli.command("prune-events")
@click.option(
    "--older-than",
    "days",
    required=True,
    type=click.IntRange(min=1, max=36_500),
    metavar="DAYS",
    help="How old an event has to be, in days.",
)
def prune_events(days: int) -> None:
    """Remove old events of every organization.

    Who asks for what was removed is answered 410, with the position to go on from. Cases and messages stay.

    \b
    Example:
      cases-service prune-events --older-than 90
    """
    from cases_service.store import events

    before = datetime.now(UTC) - timedelta(days=days)
    with _connection() as (connection, _):
        count = events.prune_events(connection, before=before.isoformat())
    click.echo(f"{_counted(count, 'event')} removed")


@cli.command("sign")
@organization_option
@click.option(
    "--external-id",
    required=True,
    metavar="TEXT",
    callback=accepting(parse_external_id),
    help="The visitor's external id, 1 to 256 characters.",
)
@click.option(
    "--ttl",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long the JWT is valid.",
)
@click.option("--kid", metavar="KID", callback=accepting(parse_id), help="The key; by default the newest HMAC key.")
def sign(organization_id: UUID, external_id: str, ttl: int, kid: UUID | None) -> None:
    """Print a visitor's JWT, signed with an HMAC key.

    \b
    Example:
      cases-service sign --organization ID --external-id customer-4711
    """
    from cases_service.credentials import administration
    from cases_service.credentials import visitor_jwt as visitor_tokens
    from cases_service.settings import read_settings

    settings = read_settings()
    if ttl > settings.jwt_max_ttl:
        raise click.BadParameter(
            f"the service accepts {settings.jwt_max_ttl} seconds at the most (CASES_JWT_MAX_TTL).",
            param_hint="'--ttl'",
        )
    with _connection() as (connection, box):
        keys = administration.live_keys(connection, organization_id=organization_id)
        key = _signing_key(keys, organization_id, kid)
        secret = administration.open_secret(key, organization_id=organization_id, box=box)
    token = visitor_tokens.sign(
        external_id,
        secret=secret,
        algorithm=key.algorithm,
        key_id=key.id,
        ttl=ttl,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
    )
    click.echo(token)


def _signing_key(keys: "Sequence[StoredKey]", organization_id: UUID, kid: UUID | None) -> "StoredKey":
    from cases_service.credentials.administration import AdministrationError

    if kid is None:
        fitting = [key for key in keys if key.algorithm in HMAC_ALGORITHMS]
        if not fitting:
            raise AdministrationError(
                f"organization {organization_id} has no live HMAC signing key:"
                f" make one with cases-service create-key --organization {organization_id}"
            )
        return fitting[-1]
    key = next((key for key in keys if key.id == kid), None)
    if key is None:
        raise AdministrationError(f"organization {organization_id} has no live signing key {kid}")
    if key.algorithm not in HMAC_ALGORITHMS:
        raise AdministrationError(
            f"signing key {kid} is for {key.algorithm}, and its private key is not here: sign where that is"
        )
    return key


@cli.command("check-token")
@organization_option
@click.argument("token", metavar="[JWT]", required=False)
@json_option
def check_token(organization_id: UUID, token: str | None, as_json: bool) -> None:  # noqa: FBT001  as above
    """Say what the service thinks of a visitor's JWT.

    The JWT is the argument or on standard input, where other users of the machine cannot see it. The
    status is 1 for one that the service would refuse.

    \b
    Example:
      cases-service sign --organization ID --external-id customer-4711 |
        cases-service check-token --organization ID
    """
    from cases_service.api.authentication import verification_keys
    from cases_service.cli.check_token import examine
    from cases_service.credentials import administration
    from cases_service.settings import read_settings

    text = _standard_input().read().decode("latin-1") if token is None else token
    settings = read_settings()
    with _connection() as (connection, box):
        live = administration.live_keys(connection, organization_id=organization_id)
        keys = verification_keys(organization_id, live, box)
        count = partial(_count_contacts, connection, organization_id)
        is_active = administration.has_active_subscription(connection, organization_id=organization_id)
        report = examine(
            text.strip(), keys, settings, now=time.time(), has_subscription=is_active, count_contacts=count
        )
    problem = report.problem
    status, code = (200, None) if problem is None else (problem.status, problem.code)
    if as_json:
        click.echo(json.dumps({"status": status, "code": code, "findings": dict(report.findings)}))
    else:
        for label, finding in [*report.findings, ("answer", f"{status} {code or ''}".rstrip())]:
            click.echo(f"{label:{_LABEL_WIDTH}}{finding}")
    if problem is not None:
        raise click.ClickException(f"{problem.code}: {problem.detail}")


def _count_contacts(connection: "psycopg.Connection[Any]", organization_id: UUID, external_id: str) -> int | None:
    from cases_service.credentials import administration

    return administration.count_contacts(connection, organization_id=organization_id, external_id=external_id)


@cli.command("doctor")
@click.option(
    "--url",
    metavar="URL",
    callback=accepting(parse_url),
    help="Where the service answers. Default: CASES_BIND, if anybody listens there.",
)
@json_option
def examine_installation(url: str | None, as_json: bool) -> None:  # noqa: FBT001  click's way to pass a flag
    """Look for what is wrong here, or soon will be.

    Settings, the database and its schema, rights, clocks, keys and tokens about to end, replicas, and the
    service itself: a line each with what to do. Nothing is changed, and no secret is shown. The status is
    1 if a check failed; a warning is none.

    \b
    Example, with the variables of the service:
      cases-service doctor --url http://10.0.0.7:8000
    """
    from cases_service.cli import doctor

    findings = []
    for finding in doctor.examine(url):
        findings.append(finding)
        if not as_json:
            click.echo(printable(f"{finding.status:{_STATUS_WIDTH}}{finding.check}: {finding.message}"))
    if as_json:
        _show(findings, as_json=True)
    if failed := [finding.check for finding in findings if finding.status == "failure"]:
        raise click.ClickException(f"{_counted(len(failed), 'check')} failed: {', '.join(failed)}")

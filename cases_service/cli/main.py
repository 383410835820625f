"""Runs the command that the arguments name. A failure is one line on standard error, and an exit status."""

import errno
import signal
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

import click

from cases_service.cli.commands import cli
from cases_service.cli.group import NAME
from cases_service.cli.standard_streams import finish_output
from cases_service.terminal import printable

_FAILURE: Final = 1
_WRONG_CALL: Final = 2
_MAY_PASS: Final = 75  # EX_TEMPFAIL of sysexits.h: the database is away, busy or read-only
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143


def main() -> NoReturn:
    """Run the command that the arguments name, and end the process with its status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    status = run(sys.argv[1:])
    if (error := finish_output()) is not None and status == 0:
        click.echo(f"{NAME}: {_last_words(error)}", err=True)
        status = _FAILURE
    # The work is done, and what ends the interpreter is not prepared for an exception.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    try:
        status: int | None = cli.main(arguments, prog_name=NAME, standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  a command's last words are one line, whatever happens
        click.echo(f"{NAME}: {printable(' '.join(_last_words(error).split()))}", err=True)
        return _status_of(error)
    return status or 0


def _status_of(error: Exception) -> int:
    import psycopg

    from cases_service.database.migrations import SchemaBusyError
    from cases_service.loading.outcome import LoadBusyError
    from cases_service.personal_data.erasure import ErasureBusyError

    if isinstance(error, click.UsageError):
        return _WRONG_CALL
    may_pass = (
        psycopg.OperationalError,
        psycopg.errors.ReadOnlySqlTransaction,
        ErasureBusyError,
        LoadBusyError,
        SchemaBusyError,
    )
    return _MAY_PASS if isinstance(error, may_pass) else _FAILURE


def _last_words(error: Exception) -> str:
    import psycopg

    from cases_service.embedded.command_database import explain

    match error:
        case click.UsageError():
            command = NAME if error.ctx is None else error.ctx.command_path
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
    from cases_service.loading.outcome import LoadError
    from cases_service.personal_data.export import PersonalDataError
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
        PersonalDataError,
        SchemaError,
        SettingsError,
    )

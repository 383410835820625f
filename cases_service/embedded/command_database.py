"""Opens the database for a command: that of DATABASE_URL, or else the embedded server in CASES_DATA_DIR."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from cases_service.database import session_settings
from cases_service.database.command_connection import CommandConnection
from cases_service.database.connection_strings import resolve, with_options
from cases_service.database.migrations import SCHEMA_VERSION, SchemaError, init_db, version_of
from cases_service.database.primary import STANDBY, for_primary, is_standby
from cases_service.embedded import data_directory
from cases_service.embedded.server import STOP_SECONDS, EmbeddedServer, join
from cases_service.settings import Settings

# Without this setting, row security hides all rows from a command.
_EVERY_ORGANIZATION: Final = {"cases.every_organization": "on"}


class NoDatabaseError(RuntimeError):
    """There is no database. The message says how to get one."""


@dataclass(frozen=True)
class CommandDatabase:
    """A database to connect to. `settings` name it and the secret key of its signing secrets."""

    settings: Settings
    embedded: EmbeddedServer | None

    @contextmanager
    def connect(self, *, with_schema: bool = True) -> Iterator[CommandConnection]:
        """Lend a connection with all rights, in autocommit mode.

        Raises:
            psycopg.OperationalError: The database is unreachable.
            NoDatabaseError: The server is a standby, which is read-only and may not know yet of a revocation.
            SchemaError: `with_schema` is set, and the database has no schema, or an older one.

        """
        defaults: dict[str, Any] = {"connect_timeout": self.settings.connect_timeout}
        defaults["application_name"] = "cases-service"
        url = for_primary(self.settings.admin_database_url or self.settings.require_database_url())
        given = with_options(url, {**session_settings.COMMANDS, **_EVERY_ORGANIZATION})
        with CommandConnection.connect(make_conninfo(**(defaults | given)), autocommit=True) as connection:
            if is_standby(connection):
                raise NoDatabaseError(f"the server in {self._variable} {STANDBY}")
            session_settings.complete(connection)
            if with_schema and version_of(connection) < SCHEMA_VERSION:
                raise SchemaError("the database has no schema, or an older one: run cases-service init-db")
            connection.look_at_server()
            yield connection

    @property
    def _variable(self) -> str:
        return "DATABASE_URL" if self.settings.admin_database_url is None else "CASES_ADMIN_DATABASE_URL"

    def initialize(self, **options: Any) -> tuple[int, int]:
        """Run `migrations.init_db` with its options, for the roles of the settings."""
        writer = self.settings.write_database_url
        with self.connect(with_schema=False) as connection:
            # A migration has statements that run outside of any transaction, and says itself what it sees.
            connection.is_on_citus = False
            return init_db(
                connection,
                service_role=resolve(self.settings.require_database_url())["user"],
                writer_role=None if writer is None else resolve(writer)["user"],
                **options,
            )


def explain(error: psycopg.Error) -> str:
    """Return a message about a database error that says what to do."""
    if error.sqlstate is None and isinstance(error, psycopg.OperationalError):
        return f"cannot reach the database: {error}"
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return "the database has another schema: run cases-service init-db"
    return f"the database refuses: {error.diag.message_primary or type(error).__name__}"


@contextmanager
def open_database(settings: Settings, *, may_make: bool = False) -> Iterator[CommandDatabase]:
    """Lend the database of these settings; an embedded server runs as long as it has users.

    Args:
        settings: As they were read.
        may_make: Whether to create an embedded server if there is none.

    Raises:
        NoDatabaseError: There is none, and none may be created.
        ForeignDirectoryError: The data directory is not the caller's own.
        EmbeddedServerError: The embedded server does not start.

    """
    if settings.database_url is not None:
        yield CommandDatabase(settings, None)
        return
    data_dir = Path(settings.data_dir).absolute()
    data_directory.require_own(data_dir)
    if not may_make and not data_directory.exists(data_dir):
        raise NoDatabaseError(
            f"there is no database: set DATABASE_URL, or run cases-service init-db to make one in {data_dir}"
        )
    programs = settings.postgres_bin
    server = join(data_dir, bin_dir=None if programs is None else Path(programs))
    try:
        yield CommandDatabase(_with_embedded(settings, server), server)
    finally:
        server.leave()
        server.wait_stopped(STOP_SECONDS)


def _with_embedded(settings: Settings, server: EmbeddedServer) -> Settings:
    known = {
        "database_url": server.service_conninfo,
        "admin_database_url": server.conninfo,
        "write_database_url": server.writer_conninfo,
        "data_dir": str(server.data_dir),
    }
    if not settings.secret_keys:
        known["secret_key_file"] = str(data_directory.secret_key_file(server.data_dir))
    return msgspec.structs.replace(settings, **known)

"""Pins the settings of a PostgreSQL session that the role, the database or the environment could change.

pg_dump pins the same for the same reason: text has the form that the program expects, no row is hidden, and no time-out
meant for others ends the session.
"""

from typing import Any, Final

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper

from cases_service.database.statements import statements

PINNED: Final = {
    "client_encoding": "UTF8",
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "row_security": "on",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""The settings that every session requests while connecting, with their values in pg_settings."""

COMMANDS: Final = {
    **PINNED,
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "statement_timeout": "0",
}
"""The settings of a command's session. Without time-outs, since loading may take long."""

PINNED_WHERE_KNOWN: Final = {"restrict_nonsystem_relation_kind": "", "transaction_timeout": "0"}
"""Settings for `complete`: a server that does not know them would reject a connection that requests them."""

_SQL: Final = statements("session")


class HexDumper(Dumper):
    """Writes bytes as hexadecimal digits, which every session reads in the same way."""

    oid = 17

    def dump(self, obj: Buffer) -> bytes:
        """Return bytea's hex format."""
        return b"\\x" + bytes(obj).hex().encode()


def complete(connection: Connection[Any]) -> None:
    """Pin the settings that cannot be requested while connecting, and send bytes in a form that no setting changes."""
    connection.adapters.register_dumper(bytes, HexDumper)
    connection.execute(_SQL["complete_session"], prepare=False)

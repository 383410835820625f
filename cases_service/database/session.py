"""Pins what the role, the database or the environment could otherwise change in a session of PostgreSQL.

pg_dump pins the same for the same reason: text is written and read in the form that the program expects, no row is
hidden, and no time-out that was meant for others ends the session.
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
"""What every session asks for as it connects, with the values as pg_settings shows them."""

COMMANDS: Final = {
    **PINNED,
    "default_transaction_isolation": "read committed",
    "lock_timeout": "0",
    "statement_timeout": "0",
}
"""What a session of a command asks for. Loading takes as long as it takes."""

PINNED_WHERE_KNOWN: Final = {"restrict_nonsystem_relation_kind": "", "transaction_timeout": "0"}
"""What `complete` sets: a server that does not know a setting would refuse a connection that asks for it."""

_SQL: Final = statements("session")


class HexDumper(Dumper):
    """Writes bytes as hexadecimal digits, which no setting of the session reads in another way."""

    oid = 17

    def dump(self, obj: Buffer) -> bytes:
        """Return bytea's hex format."""
        return b"\\x" + bytes(obj).hex().encode()


def complete(connection: Connection[Any]) -> None:
    """Pin what cannot be asked for while connecting, and send bytes in a form that depends on no setting."""
    connection.adapters.register_dumper(bytes, HexDumper)
    connection.execute(_SQL["complete_session"], prepare=False)

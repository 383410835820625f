"""Asks a server for its state: the version of its schema, and its position in the write-ahead log."""

from typing import Final

from cases_service.database.connection_pool import Connection
from cases_service.database.statements import statements

_SCHEMA: Final = statements("schema")
_REPLICATION: Final = statements("replication")


def get_schema_version(connection: Connection) -> int:
    """Return the version of the database's schema."""
    row = connection.execute(_SCHEMA["get_schema_version"]).fetchone()
    return 0 if row is None else int(row[0])


def get_flushed_wal(connection: Connection) -> int | None:
    """Return how far a primary's write-ahead log has come, None where the server is no primary."""
    return _position_in_wal(connection, "get_flushed_wal")


def get_replayed_wal(connection: Connection) -> int | None:
    """Return how far a replica has come in the primary's log, None where the server is no replica."""
    return _position_in_wal(connection, "get_replayed_wal")


def _position_in_wal(connection: Connection, name: str) -> int | None:
    row = connection.execute(_REPLICATION[name]).fetchone()
    return None if row is None else row[0]

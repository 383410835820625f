"""Queries a server's state: its schema version, and its position in the write-ahead log (WAL)."""

from typing import Final

from cases_service.database.connection import Connection
from cases_service.database.statements import statements

_SCHEMA: Final = statements("schema")
_REPLICATION: Final = statements("replication")


def get_schema_version(connection: Connection) -> int:
    """Return the version of the database's schema."""
    row = connection.execute(_SCHEMA["get_schema_version"]).fetchone()
    return 0 if row is None else int(row[0])


def get_flushed_wal(connection: Connection) -> int | None:
    """Return the end of a primary's flushed WAL; None if the server is not a primary."""
    return _position_in_wal(connection, "get_flushed_wal")


def get_replayed_wal(connection: Connection) -> int | None:
    """Return the position up to which a replica has replayed its primary's WAL; None if it is not a replica."""
    return _position_in_wal(connection, "get_replayed_wal")


def _position_in_wal(connection: Connection, name: str) -> int | None:
    row = connection.execute(_REPLICATION[name]).fetchone()
    return None if row is None else row[0]

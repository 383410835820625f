"""Finds the primary among the hosts that a connection string names.

API tokens, signing keys and subscriptions are read there and nowhere else: a standby does not know yet what was
revoked.
"""

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cases_service.database.connection_strings import place_of
from cases_service.database.statements import statements

STANDBY: Final = "is a standby, in recovery: name the primary, or all hosts of which one is the primary"
"""What is said of a server that is none."""

_SQL: Final = statements("session")


def for_primary(url: str) -> str:
    """Return a connection string that makes libpq go on to the primary where several hosts are named."""
    has_several = any("," in place for place in place_of(url).values())
    if has_several and conninfo_to_dict(url).get("target_session_attrs") in (None, "any"):
        return make_conninfo(url, target_session_attrs="primary")
    return url


def is_standby(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a server only follows another one, and may be behind it."""
    row = connection.execute(_SQL["get_server"], prepare=False).fetchone()
    return row is None or bool(row[0])

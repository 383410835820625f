"""Finds the primary among the hosts of a connection string.

API tokens, signing keys and subscriptions are read only there: a standby may not know yet of a revocation.
"""

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cases_service.database.connection_strings import place_of
from cases_service.database.statements import statements

STANDBY: Final = "is a standby, in recovery: name the primary, or all hosts of which one is the primary"
"""The end of the message about a server that is not the primary."""

_SQL: Final = statements("session")


def for_primary(url: str) -> str:
    """Return a connection string with which libpq tries several hosts until it finds the primary."""
    has_several = any("," in place for place in place_of(url).values())
    if has_several and conninfo_to_dict(url).get("target_session_attrs") in (None, "any"):
        return make_conninfo(url, target_session_attrs="primary")
    return url


def is_standby(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether a server is a standby, which may lag behind its primary."""
    row = connection.execute(_SQL["get_server"], prepare=False).fetchone()
    return row is None or bool(row[0])

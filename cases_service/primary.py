"""Finds the primary among the hosts that a connection string names.

API tokens, signing keys and subscriptions are read there and nowhere else: a standby does not know yet what was
revoked.
"""

from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cases_service.database.statements import statements

STANDBY: Final = "is a standby, in recovery: name the primary, or all hosts of which one is the primary"
"""What is said of a server that is none."""

_SQL: Final = statements("session")
_PLACES: Final = ("host", "hostaddr", "port")


def for_primary(url: str) -> dict[str, Any]:
    """Return the parameters of a connection string; where it names several hosts, libpq goes on to the primary."""
    given = conninfo_to_dict(url)
    has_several = any("," in str(given.get(name) or "") for name in _PLACES)
    if has_several and given.get("target_session_attrs") in (None, "any"):
        given["target_session_attrs"] = "primary"
    return given


def is_standby(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a server only follows another one, and may be behind it."""
    row = connection.execute(_SQL["get_server"], prepare=False).fetchone()
    return row is None or bool(row[0])

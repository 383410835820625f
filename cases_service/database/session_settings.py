"""The settings of a PostgreSQL session: what statements rely on, and the connection string that asks for it.

Settings that the role, the database or the environment could change are pinned, as pg_dump pins them: text has the form
that the program expects, no row is hidden, and no time-out meant for others ends the session.
"""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.conninfo import make_conninfo

from cases_service.database.connection_strings import with_options
from cases_service.database.primary import for_primary
from cases_service.database.statements import statements
from cases_service.settings import Settings

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

# Every statement of a request is a few index look-ups in the order of the index. Restricted to those, one generic plan
# is right for all parameters, and neither stale statistics nor a wrong estimate can make a bad one. A sort that cannot
# be avoided (a page is merged from its contacts) still runs.
_SERVICE: Final = {
    **PINNED,
    "default_transaction_read_only": "on",
    # A request's access and its data come from one state of the database: see `pipeline`.
    "default_transaction_isolation": "repeatable read",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}
# Detects a vanished peer within seconds, instead of the minutes of TCP's defaults.
_LIVENESS: Final = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
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


def of_service(settings: Settings) -> dict[str, str]:
    """Return the PostgreSQL settings that the statements rely on, with their values in pg_settings."""
    plans = "force_generic_plan" if settings.generic_plans else "force_custom_plan"
    return {
        **_SERVICE,
        "plan_cache_mode": plans,
        "lock_timeout": f"{settings.lock_seconds * 1000:.0f}",
        "statement_timeout": f"{settings.statement_timeout * 1000:.0f}",
    }


def dropped_settings(found: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """Return the settings that a session has with other values than requested."""
    wanted = {**asked, **PINNED_WHERE_KNOWN}
    return sorted(name for name, value in found.items() if value.partition(",")[0] != wanted[name])


def connection_parameters(url: str, settings: Settings) -> str:
    """Return the service's connection string: the URL with the session settings that the statements rely on."""
    given = with_options(for_primary(url), of_service(settings))
    defaults = {
        "application_name": "cases-service",
        "connect_timeout": str(settings.connect_timeout),
        **_LIVENESS,
    }
    return make_conninfo("", **{**defaults, **given})

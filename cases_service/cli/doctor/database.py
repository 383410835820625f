"""Checks the database: the server, the session, its clock, the schema and the planner's statistics."""

from time import time
from typing import Final

from cases_service.cli.doctor.findings import AnyConnection, Verdict, list_some, value_of
from cases_service.database import session_settings
from cases_service.database.connection import Connection
from cases_service.database.migrations import SCHEMA_VERSION, version_of
from cases_service.database.primary import STANDBY, is_standby
from cases_service.database.statements import statements
from cases_service.settings import Settings

_SQL: Final = statements("session")
_OLDEST_SERVER: Final = 150000
_CLOCK_SECONDS: Final = 5.0


def connect_as_service(url: str, settings: Settings) -> Connection:
    """Connect as the service does."""
    connection = Connection.connect(session_settings.connection_parameters(url, settings), autocommit=True)
    connection.answer_timeout = settings.answer_seconds
    session_settings.complete(connection)
    return connection


def check_server(connection: AnyConnection) -> Verdict:
    """Check that the server is a primary, new enough, and stores UTF-8."""
    if is_standby(connection):
        return "failure", f"the server in DATABASE_URL {STANDBY}"
    version = connection.info.parameter_status("server_version") or ""
    if connection.info.server_version < _OLDEST_SERVER:
        return "failure", f"PostgreSQL {version} is too old: use {_OLDEST_SERVER // 10000} or newer"
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        return "failure", f"stores text as {encoding}: make a database with encoding UTF8, and load into that"
    return "ok", f"PostgreSQL {version}, {encoding}"


def check_session(connection: AnyConnection, asked: dict[str, str]) -> Verdict:
    """Check that no pooler has dropped or changed a setting of the session."""
    names = [*asked, *session_settings.PINNED_WHERE_KNOWN]
    found: dict[str, str] = dict(connection.execute(_SQL["get_session"], {"names": names}).fetchall())
    if dropped := session_settings.dropped_settings(found, asked):
        return "failure", f"not what was asked for: {', '.join(dropped)}; see PgBouncer in docs/scaling.md"
    return "ok", f"{len(found)} settings are as the statements need them"


def check_clock(connection: AnyConnection) -> Verdict:
    """Compare the database's clock with this machine's."""
    before = time()
    there = value_of(connection, _SQL["get_clock"])
    ahead = there - (before + time()) / 2
    if abs(ahead) > _CLOCK_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        return "warning", f"the database's is {abs(ahead):.1f} s {direction} this machine's: set both by NTP"
    return "ok", f"within {_CLOCK_SECONDS:g} s of the database's"


def check_calls(connection: AnyConnection) -> Verdict:
    """Check that on Citus the service may ask by calls that the nodes answer."""
    *_, calls = connection.execute(_SQL["get_server"]).fetchone() or (False,)
    if not calls:
        return "warning", (
            "requests take several times as long as they need to, for want of a function: run deploy/citus.sql again,"
            " and restart the service (docs/scaling.md)"
        )
    return "ok", "each request is one call, which the node of its organization answers"


def check_schema(connection: AnyConnection) -> Verdict:
    """Check that the schema is there, and as new as this release."""
    version = version_of(connection)
    if version == 0:
        return "failure", "there is none: run cases-service init-db"
    if version < SCHEMA_VERSION:
        return "failure", f"version {version}, and this release needs {SCHEMA_VERSION}: run cases-service init-db"
    return "ok", f"version {version}"


def check_statistics(connection: AnyConnection) -> Verdict:
    """Check that the planner has statistics of every large table."""
    if tables := [name for (name,) in connection.execute(_SQL["list_unknown_to_the_planner"]).fetchall()]:
        return "warning", f"the planner has never looked at {list_some(tables)}: run analyze as their owner"
    return "ok", "the planner has looked at every large table"

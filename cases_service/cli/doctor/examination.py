"""Runs the checks in their order."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import psycopg

from cases_service.cli.doctor.credentials import check_api_tokens, check_signing_keys, check_stored_secrets
from cases_service.cli.doctor.database import (
    check_calls,
    check_clock,
    check_schema,
    check_server,
    check_session,
    check_statistics,
    connect_as_service,
)
from cases_service.cli.doctor.feeds import check_feeds
from cases_service.cli.doctor.findings import AnyConnection, Finding, found, one_line
from cases_service.cli.doctor.replicas import check_replicas
from cases_service.cli.doctor.roles import check_rights, check_row_security, check_sight, check_writer
from cases_service.cli.doctor.service import check_service
from cases_service.cli.doctor.system import check_open_files, check_rate_limits, check_setting_names
from cases_service.database import session_settings
from cases_service.database.command_connection import is_citus
from cases_service.database.connection import Connection
from cases_service.embedded.command_database import CommandDatabase, NoDatabaseError, explain, open_database
from cases_service.embedded.data_directory import ForeignDirectoryError
from cases_service.embedded.server import EmbeddedServerError
from cases_service.settings import Settings, SettingsError, read_settings, unknown_names


def examine(url: str | None = None) -> Iterator[Finding]:
    """Yield the finding of each check. Checks that could only repeat an earlier failure are left out.

    Args:
        url: The address of a service. By default that in CASES_BIND, if something listens there.

    """
    try:
        settings = read_settings()
    except SettingsError as error:
        yield Finding("settings", "failure", str(error))
        return
    yield Finding("settings", *check_setting_names(unknown_names()))
    yield Finding("open files", *check_open_files(settings))
    try:
        with open_database(settings) as database:
            yield from _examine_database(database)
    except (NoDatabaseError, EmbeddedServerError, ForeignDirectoryError) as error:
        yield Finding("database", "failure", one_line(str(error)))
    yield Finding("rate limits", *check_rate_limits(settings))
    yield from check_service(settings, url)


def _examine_database(database: CommandDatabase) -> Iterator[Finding]:
    settings = database.settings
    with ExitStack() as stack:
        try:
            service = stack.enter_context(connect_as_service(settings.require_database_url(), settings))
        except psycopg.Error as error:
            yield Finding("database", "failure", f"{one_line(explain(error))}; check DATABASE_URL")
            return
        yield found("database", partial(check_server, service))
        yield found("session", partial(check_session, service, session_settings.of_service(settings)))
        yield found("clock", partial(check_clock, service))
        if is_citus(service):
            yield found("Citus", partial(check_calls, service))
        try:
            admin = stack.enter_context(database.connect(with_schema=False))
        except NoDatabaseError as error:
            yield Finding("administration", "failure", str(error))
            return
        except psycopg.Error as error:
            name = "DATABASE_URL" if settings.admin_database_url is None else "CASES_ADMIN_DATABASE_URL"
            yield Finding("administration", "failure", f"{one_line(explain(error))}; check {name}")
            return
        yield found("session of commands", partial(check_session, admin, session_settings.COMMANDS))
        schema = found("schema", partial(check_schema, admin))
        yield schema
        if schema.status != "failure":
            yield from _examine_tables(service, admin, settings)


def _examine_tables(service: Connection, admin: AnyConnection, settings: Settings) -> Iterator[Finding]:
    """Yield what needs the schema."""
    yield found("rights", partial(check_rights, service))
    yield found("row security", partial(check_row_security, service))
    yield found("statistics", partial(check_statistics, admin))
    if settings.write_database_url is not None:
        yield found("writer", partial(check_writer, settings.write_database_url, settings))
    yield from _examine_organizations(admin, settings)
    yield from check_replicas(service, settings)


def _examine_organizations(connection: AnyConnection, settings: Settings) -> Iterator[Finding]:
    """Yield what concerns the credentials and feeds of all organizations."""
    sight = found("administration", partial(check_sight, connection))
    yield sight
    if sight.status == "ok":
        yield found("signing keys", partial(check_signing_keys, connection))
        yield found("stored secrets", partial(check_stored_secrets, connection, settings))
        yield found("API tokens", partial(check_api_tokens, connection))
        yield found("feeds", partial(check_feeds, connection))

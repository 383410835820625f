"""The role that writes cases for the service: the rows of one organization at a time, and nothing else."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.database.migrations import SchemaError
from cases_service.database.pipeline import preamble
from cases_service.embedded.command_database import CommandDatabase
from cases_service.settings import Settings, SettingsError
from tests.database.test_roles import ROLES, Roles, make_roles, roles
from tests.documents import block
from tests.factories import Organization

__all__ = ["make_roles", "roles"]

UNREADABLE = ("organizations", "api_tokens", "signing_keys")
READABLE = ("users", "visitors", "contacts", "case_funnel_stages", "cases")
# What a visitor did is written once.
KEPT = ("event_positions", "events")


@pytest.fixture
def writer(writer_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(writer_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def two(organization: Organization) -> tuple[Organization, Organization]:
    other = Organization(organization.connection, organization.box)
    for one in (organization, other):
        one.case(one.visitor().contact_ids[0])
    return organization, other


def test_it_writes_cases_of_the_organization_that_it_names(
    writer: psycopg.Connection, two: tuple[Organization, Organization]
) -> None:
    own, _ = two
    assert writer.execute("update cases set subject = 'x'").rowcount == 0
    with writer.transaction():
        writer.execute(preamble(own.id)[-1])
        assert writer.execute("update cases set subject = 'x'").rowcount == 1
        assert writer.execute("delete from cases").rowcount == 1


def test_it_writes_no_row_of_another_organization(
    writer: psycopg.Connection, two: tuple[Organization, Organization]
) -> None:
    own, other = two
    insert = (
        "insert into cases (organization_id, id, case_number, status, priority, created_at, updated_at)"
        f" values ('{other.id}', '{uuid4()}', '1', 'Open', 1, now(), now())"
    )
    for text in (insert, f"update cases set organization_id = '{other.id}'"):
        with writer.transaction():
            writer.execute(preamble(own.id)[-1])
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"), writer.transaction():
                writer.execute(text.encode())


@pytest.mark.parametrize("table", UNREADABLE)
def test_it_does_not_see_what_opens_the_service(writer: psycopg.Connection, table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute(f"select 1 from {table}".encode())


@pytest.mark.parametrize("table", [*UNREADABLE, "schema_version"])
def test_it_changes_nothing_that_opens_the_service(
    writer: psycopg.Connection, two: tuple[Organization, Organization], table: str
) -> None:
    with writer.transaction():
        writer.execute(preamble(two[0].id)[-1])
        for text in (f"insert into {table} default values", f"delete from {table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), writer.transaction():
                writer.execute(text.encode())


@pytest.mark.parametrize("table", KEPT)
def test_it_removes_nothing_of_what_happened(writer: psycopg.Connection, table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute(f"delete from {table}".encode())


def test_it_neither_reads_nor_changes_an_event(writer: psycopg.Connection) -> None:
    for text in ("select 1 from events", "update events set position = 1"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute(text.encode())


@pytest.mark.parametrize("table", READABLE)
def test_it_writes_what_an_import_brings_for_one_organization_alone(
    writer: psycopg.Connection, two: tuple[Organization, Organization], table: str
) -> None:
    own, other = two
    own.stage()
    copy = f"update {table} set organization_id = '{other.id}'"
    with writer.transaction(force_rollback=True):
        writer.execute(preamble(own.id)[-1])
        assert writer.execute(f"update {table} set id = id".encode()).rowcount >= 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"), writer.transaction():
            writer.execute(copy.encode())


def test_it_removes_no_user(writer: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("delete from users")


def test_it_may_stage_lines(writer: psycopg.Connection, roles: Roles) -> None:
    writer.execute("create temp table staged as select id from cases with no data")
    CommandDatabase(roles.writing_settings, None).initialize()
    with psycopg.connect(roles.url(roles.writer)) as connection:
        connection.execute("create temp table staged as select id from cases with no data")


def test_init_db_lets_it_stage_lines_where_nobody_else_may(make_roles: Callable[[str], Roles]) -> None:
    made = make_roles(
        ROLES.replace(
            "connect, temporary on database cases to cases_writer", "connect on database cases to cases_writer"
        )
    )
    CommandDatabase(made.writing_settings, None).initialize()
    with psycopg.connect(made.url(made.writer)) as connection:
        connection.execute("create temp table staged as select id from cases with no data")


def test_it_cannot_change_the_schema(writer: psycopg.Connection) -> None:
    for text in ("create table t ()", "truncate cases", "update schema_version set version = 0", "set role postgres"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            writer.execute(text.encode())


def test_init_db_lets_it_write_and_leaves_the_service_reading(roles: Roles) -> None:
    CommandDatabase(roles.writing_settings, None).initialize()
    with psycopg.connect(roles.url(roles.writer), autocommit=True) as connection:
        assert connection.execute("delete from cases").rowcount == 0
    with psycopg.connect(roles.url(roles.service), autocommit=True) as connection:
        for text in ("delete from cases", "update cases set subject = ''"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(text.encode())


def test_the_lines_of_the_document_make_it(make_roles: Callable[[str], Roles]) -> None:
    lines = [
        block("docs/security.md", "sql", "create role cases_owner"),
        block("docs/security.md", "sql", "create role cases_writer"),
    ]
    made = make_roles("\n".join(lines).replace("…", "secret"))
    CommandDatabase(made.writing_settings, None).initialize()
    with psycopg.connect(made.url(made.writer), autocommit=True) as connection:
        assert connection.execute("delete from cases").rowcount == 0


def test_without_a_password_for_it_there_is_none(make_roles: Callable[[str], Roles]) -> None:
    made = make_roles(ROLES.replace("\\getenv writer_password WRITER_PASSWORD", ""))
    with psycopg.connect(made.superuser_url) as connection:
        found = connection.execute("select 1 from pg_roles where rolname = %s", [made.writer]).fetchone()
    assert found is None


def test_a_role_that_does_not_exist_is_named(roles: Roles) -> None:
    settings = msgspec.structs.replace(roles.settings, write_database_url=roles.url("nobody_at_all"))
    with pytest.raises(SchemaError, match="no role nobody_at_all, which CASES_WRITE_DATABASE_URL names"):
        CommandDatabase(settings, None).initialize()


def test_one_role_for_everything_writes_too(server_url: str, roles: Roles) -> None:
    """The owner has all rights; nothing is granted to it, and nothing taken."""
    url = make_conninfo(server_url, dbname=roles.database)
    settings = Settings(database_url=url, write_database_url=url)
    CommandDatabase(settings, None).initialize()
    assert CommandDatabase(settings, None).initialize()[0] > 0


def test_a_writer_without_a_service_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="CASES_WRITE_DATABASE_URL"):
        Settings(write_database_url="host=db")

"""Row security: what keeps organizations apart where a statement does not."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest
from psycopg import sql

from cases_service.cases.filters import Filters
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query, Result, preamble
from cases_service.database.statements import Statement, number, statements
from cases_service.settings import Settings
from cases_service.store.page_statements import case_statement, page_shapes, page_statement
from tests.factories import LONG_AGO, TABLES, Organization
from tests.statements import as_written

# What has been removed, and whom an organization has erased, is for who writes.
UNSERVED = ("removed_rows", "erasure_keys", "erased_visitors")
SERVED = tuple(table for table in TABLES if table not in UNSERVED)
WITH_NOTES = ("activities", "messages")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.require_database_url(), settings)
    database.open()
    yield database
    database.close()


@pytest.fixture
def service(service_url: str) -> Iterator[psycopg.Connection]:
    """A connection of the role that serves, which says nothing of an organization by itself."""
    with psycopg.connect(service_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def two(organization: Organization) -> tuple[Organization, Organization]:
    """Two organizations with a row in each table."""
    other = Organization(organization.connection, organization.box)
    for one in (organization, other):
        stage = uuid4()
        one.insert("case_funnel_stages", organization_id=one.id, id=stage, name="New", position=1)
        visitor = one.visitor("the same customer")
        case_id = one.case(visitor.contact_ids[0], owner_id=one.user_id, case_funnel_stage_id=stage)
        add_conversation(one, case_id)
        one.import_run()
        one.insert("erasure_keys", organization_id=one.id, key=b"k" * 32)
        one.insert("erased_visitors", organization_id=one.id, external_id_hash=b"h" * 32, erased_at=LONG_AGO)
    return organization, other


def add_conversation(one: Organization, case_id: UUID) -> None:
    """Add a message and a note, each in an activity of its own, and an event."""
    about = {"organization_id": one.id, "case_id": case_id, "created_at": LONG_AGO}
    for is_private in (False, True):
        given = {**about, "is_private": is_private}
        activity_id, message_id = uuid4(), uuid4()
        one.insert("activities", id=activity_id, channel="email", updated_at=LONG_AGO, **given)
        one.insert("messages", id=message_id, activity_id=activity_id, sender_type="user", text="x", **given)
    one.insert("event_positions", organization_id=one.id, last_position=1)
    one.insert("events", position=1, type="case_closed", external_id="the same customer", case_number="1", **about)


def seen(connection: psycopg.Connection, table: str) -> set[UUID]:
    statement = sql.SQL("select distinct organization_id from {}").format(sql.Identifier(table))
    return {row[0] for row in connection.execute(statement)}


def test_every_table_with_tenant_data_forces_row_security(connection: psycopg.Connection) -> None:
    rows = connection.execute("""
        select relname, relrowsecurity and relforcerowsecurity,
            (select array_agg(polname::text order by polname) from pg_policy where polrelid = c.oid)
        from pg_class c
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relname <> 'schema_version'
    """).fetchall()
    assert sorted(name for name, _, _ in rows) == sorted(TABLES)
    assert all(forced for _, forced, _ in rows)
    assert {name: policies for name, _, policies in rows} == {
        table: ["administration", "own_organization", *(["private_notes"] if table in WITH_NOTES else [])]
        for table in TABLES
    }


@pytest.mark.parametrize("table", SERVED)
def test_the_service_sees_nothing_unless_it_says_whose(
    service: psycopg.Connection, two: tuple[Organization, Organization], table: str
) -> None:
    own, _ = two
    assert seen(service, table) == set()
    with service.transaction():
        service.execute(preamble(own.id)[-1])
        assert seen(service, table) == {own.id}
    assert seen(service, table) == set()


@pytest.mark.parametrize("table", WITH_NOTES)
@pytest.mark.parametrize("role", ["service_url", "writer_url"])
def test_notes_are_hidden_from_who_does_not_ask_for_them(
    request: pytest.FixtureRequest, two: tuple[Organization, Organization], table: str, role: str
) -> None:
    statement = f"select is_private from {table} order by is_private".encode()
    with psycopg.connect(request.getfixturevalue(role), autocommit=True) as connection:
        for notes, found in ((False, [(False,)]), (True, [(False,), (True,)]), (False, [(False,)])):
            with connection.transaction():
                for command in preamble(two[0].id, notes=notes)[1:]:
                    connection.execute(command)
                assert connection.execute(statement).fetchall() == found


def test_who_does_not_see_notes_writes_none(writer_url: str, two: tuple[Organization, Organization]) -> None:
    with psycopg.connect(writer_url, autocommit=True) as connection, connection.transaction():
        connection.execute(preamble(two[0].id)[-1])
        assert connection.execute("update messages set read_at = now()").rowcount == 1
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"), connection.transaction():
            connection.execute("update messages set is_private = true")


def test_who_sees_every_organization_sees_their_notes(
    database_url: str, service_role: str, two: tuple[Organization, Organization]
) -> None:
    """A dump without them would be no backup. The owner here is a superuser, so another one takes its place."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"grant select on all tables in schema public to {service_role}".encode())
        connection.execute(f"alter policy administration on messages to {service_role}".encode())
        connection.execute(f"set role {service_role}".encode())
        connection.execute("set cases.every_organization = 'on'")
        rows = connection.execute("select is_private from messages where organization_id = %s", [two[0].id]).fetchall()
        connection.rollback()
    assert sorted(rows) == [(False,), (True,)]


def test_the_service_does_not_see_every_organization_by_asking_for_it(
    service: psycopg.Connection, two: tuple[Organization, Organization]
) -> None:
    service.execute("set cases.every_organization = 'on'")
    assert [table for table in SERVED if seen(service, table)] == []


@pytest.mark.parametrize("table", UNSERVED)
def test_the_service_sees_neither_who_was_erased_nor_what_was_removed(service: psycopg.Connection, table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        seen(service, table)


@pytest.mark.parametrize("table", ["erasure_keys", "erased_visitors"])
def test_who_writes_sees_whom_one_organization_has_erased_and_changes_nothing_of_it(
    writer_url: str, two: tuple[Organization, Organization], table: str
) -> None:
    with psycopg.connect(writer_url, autocommit=True) as connection, connection.transaction():
        connection.execute(preamble(two[0].id)[-1])
        assert seen(connection, table) == {two[0].id}
        for text in (f"update {table} set organization_id = organization_id", f"delete from {table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(text.encode())


@pytest.mark.parametrize("table", TABLES)
def test_the_service_may_not_write(
    service: psycopg.Connection, two: tuple[Organization, Organization], table: str
) -> None:
    column = {
        "organizations": "name",
        "users": "alias",
        "visitors": "external_id",
        "event_positions": "last_position",
        "events": "type",
        "erasure_keys": "key",
        "erased_visitors": "erased_at",
    }.get(table, "id")
    with service.transaction():
        service.execute(preamble(two[0].id)[-1])
        for text in (
            f"insert into {table} (organization_id) values (gen_random_uuid())",
            f"update {table} set {column} = {column}",
            f"delete from {table}",
            f"truncate {table}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), service.transaction():
                service.execute(text.encode())


def test_of_tokens_and_keys_the_service_may_write_the_last_use_and_only_of_one_organization(
    service: psycopg.Connection, two: tuple[Organization, Organization]
) -> None:
    own, _ = two
    for table in ("api_tokens", "signing_keys"):
        statement = f"update {table} set last_used_at = now()".encode()
        assert service.execute(statement).rowcount == 0
        with service.transaction():
            service.execute(preamble(own.id)[-1])
            assert service.execute(statement).rowcount == 1
    for text in ("update api_tokens set revoked_at = null", "update signing_keys set encrypted_secret = 'x'"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(text.encode())


def test_the_service_can_neither_make_nor_change_anything_else(service: psycopg.Connection) -> None:
    for text in (
        "create table t ()",
        "create schema s",
        "update schema_version set version = 0",
        "alter table cases no force row level security",
        "drop policy own_organization on cases",
        "set role postgres",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute(text.encode())


def cases_seen() -> Query[set[str]]:
    return Query(Statement(b"cases_seen", b"select distinct organization_id from cases", ()), {}, first_column)


def first_column(result: Result) -> set[str]:
    return {row[0] for row in result.rows}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("is_citus", [False, True])
def test_a_read_is_limited_to_its_organization_and_the_next_one_on_the_connection_to_none(
    settings: Settings, two: tuple[Organization, Organization], prepared: bool, is_citus: bool
) -> None:
    changed = msgspec.structs.replace(settings, prepared_statements=prepared, pool_size=1)
    database = Database(settings.require_database_url(), changed)
    database.open()

    def as_on_citus(connection: Connection) -> None:
        connection.exchange._is_citus = is_citus

    database.read(as_on_citus)
    for own in (*two, *two):
        assert database.ask(own.id, cases_seen()) == {str(own.id)}
        assert database.read(lambda given: seen(given, "cases")) == set()
    database.close()


def test_on_citus_the_servers_are_told_to_pass_the_organization_on() -> None:
    commands = preamble(UUID(int=1), is_citus=True)
    assert commands[2:] == (
        b"set local citus.propagate_set_commands = 'local'",
        b"set local cases.organization_id = '00000000-0000-0000-0000-000000000001'",
    )


PARAMETERS: dict[str, Any] = {
    "after": "-infinity",
    "after_id": UUID(int=0),
    "row_limit": 100,
    "furthest": "infinity",
    "rearmost": "-infinity",
    "case_id": None,
    "external_id": "the same customer",
    **Filters().parameters(),
}
DESCENDING = {
    "after": "infinity",
    "after_id": UUID(int=2**128 - 1),
    "furthest": "-infinity",
    "rearmost": "infinity",
}
IDS = """
    select id from cases where organization_id = %(organization_id)s
    union select id from contacts where organization_id = %(organization_id)s
    union select id from visitors where organization_id = %(organization_id)s
    union select id from users where organization_id = %(organization_id)s
"""
WHOLE = [shape for shape in page_shapes() if shape.versions]
TEXTS = {
    **{one.name.decode(): as_written(one) for one in (*map(page_statement, WHOLE), case_statement())},
    **{f"summary.{name}": text for name, text in statements("summary").items()},
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_statement_without_its_predicates_shows_nobody_elses_cases(
    database: Database, two: tuple[Organization, Organization], name: str
) -> None:
    """Each comparison with the organization is made one of the column with itself, which is no comparison at all."""
    own, other = two
    text = TEXTS[name]
    stripped = re.sub(r'((?:\w+\.)?"?[\w.]*organization_id"?) = %\(organization_id\)s', r"\1 = \1", text)
    assert "%(organization_id)s" not in stripped
    foreign = {str(other.id), *(str(id_) for (id_,) in own.connection.execute(IDS, {"organization_id": other.id}))}
    given = PARAMETERS | DESCENDING if "descending" in name else PARAMETERS

    query = Query(number(name, stripped), given, lambda result: result.rows)
    rows = database.ask(own.id, query)
    assert len(rows) == 1
    assert [value for value in rows[0] if str(value) in foreign] == []
    assert database.ask(uuid4(), query) == []
    # The same text does show them to one whom row security does not bind.
    assert len(own.connection.execute(stripped, given).fetchall()) > 1 or name.startswith("summary")


PAGES_OF_VISITORS = ("list_messages_of_visitor", "list_activities_of_visitor")


@pytest.mark.parametrize("name", PAGES_OF_VISITORS)
def test_a_visitors_page_shows_no_note_even_without_its_predicate(
    database: Database, two: tuple[Organization, Organization], name: str
) -> None:
    own, _ = two
    text = statements("conversations")[name].replace("and k.is_private = false", "")
    assert "is_private =" not in text
    (case_id,) = own.connection.execute("select id from cases where organization_id = %s", [own.id]).fetchone() or ()
    given = {**PARAMETERS, "organization_id": own.id, "case_id": case_id, "look_behind": False}
    query = Query(number(name, text), given, lambda result: result.rows)
    assert len(database.ask(own.id, query)) == 1
    assert len(database.ask(own.id, query, notes=True)) == 2


@pytest.mark.parametrize(
    "name", [*PAGES_OF_VISITORS, "list_messages_of_organization", "list_activities_of_organization"]
)
def test_a_page_of_a_case_without_its_predicates_shows_nobody_elses(
    database: Database, two: tuple[Organization, Organization], name: str
) -> None:
    own, other = two
    text = re.sub(r"((?:\w+\.)?organization_id) = %\(organization_id\)s", r"\1 = \1", statements("conversations")[name])
    assert "organization_id)s" not in text
    rows = other.connection.execute("select id from cases where organization_id = %s", [other.id]).fetchall()
    given = {**PARAMETERS, "case_id": rows[0][0], "look_behind": False}
    query = Query(number(name, text), given, lambda result: result.rows)
    # At most that there is such a visitor here, who has no such case.
    assert [row[1] for row in database.ask(own.id, query, notes=True)] in ([], [None])
    assert database.ask(other.id, query)[0][1] == str(rows[0][0])


def test_the_service_learns_how_many_feeds_are_late_and_not_whose(
    service: psycopg.Connection, two: tuple[Organization, Organization]
) -> None:
    before = service.execute("select count_late_feeds()").fetchone()
    third = Organization(two[0].connection, two[0].box)
    for minutes in range(60, 80):
        third.import_run(datetime.now(UTC) - timedelta(minutes=minutes))
    after = service.execute("select count_late_feeds()").fetchone()
    assert before is not None
    assert after == (before[0] + 1,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.execute("select organization_id from late_feeds")
    with service.transaction():
        service.execute("select count_late_feeds()")
        assert seen(service, "import_runs") == set()

"""The database itself enforces the API's promises, against every writer."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.factories import LONG_AGO, Organization


def constraint(error: pytest.ExceptionInfo[psycopg.errors.IntegrityError]) -> str | None:
    return error.value.diag.constraint_name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"status": "Done"}, "cases_status_known"),
        ({"status": "open"}, "cases_status_known"),
        ({"status": "Closed", "closed_at": None}, "cases_closed_at_fits_status"),
        ({"status": "Open", "closed_at": LONG_AGO}, "cases_closed_at_fits_status"),
        ({"priority": 0}, "cases_priority_known"),
        ({"priority": 6}, "cases_priority_known"),
        ({"latest_messaging_channel": "sms"}, "cases_channel_known"),
        ({"channel_priority": 5}, "cases_channel_priority_known"),
        ({"unread_message_count": -1}, "cases_unread_message_count_not_negative"),
        ({"visitor_unread_message_count": -1}, "cases_visitor_unread_message_count_not_negative"),
        ({"case_number": ""}, "cases_case_number_length"),
        ({"case_number": "x" * 257}, "cases_case_number_length"),
        ({"subject": "x" * 1001}, "cases_text_lengths"),
        ({"description": "x" * 65537}, "cases_text_lengths"),
        ({"created_at": "infinity"}, "cases_times_in_range"),
        ({"updated_at": "-infinity"}, "cases_times_in_range"),
        ({"updated_at": "10000-01-01"}, "cases_times_in_range"),
        ({"created_at": "0044-03-15 BC"}, "cases_times_in_range"),
        ({"owner_id": UUID(int=9)}, "cases_owner_fk"),
        ({"created_by_user_id": UUID(int=9)}, "cases_created_by_user_fk"),
        ({"updated_by_user_id": UUID(int=9)}, "cases_updated_by_user_fk"),
        ({"case_funnel_stage_id": UUID(int=9)}, "cases_funnel_stage_fk"),
    ],
)
def test_a_case_keeps_its_promises(organization: Organization, values: dict[str, Any], name: str) -> None:
    contact = organization.visitor().contact_ids[0]
    with pytest.raises(psycopg.errors.IntegrityError) as error:
        organization.case(contact, **values)
    assert constraint(error) == name


def test_a_case_number_is_unique_in_its_organization(organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    for owner in (organization, other):
        owner.case(None, case_number="C-1")
    with pytest.raises(psycopg.errors.UniqueViolation) as error:
        organization.case(None, case_number="C-1")
    assert constraint(error) == "cases_case_number_unique"


def test_an_external_id_is_unique_by_its_bytes(organization: Organization) -> None:
    for external_id in ("\u00e9", "e\u0301", "E", "e"):
        organization.visitor(external_id)
    with pytest.raises(psycopg.errors.UniqueViolation) as error:
        organization.visitor("e")
    assert constraint(error) == "visitors_external_id_unique"


@pytest.mark.parametrize("external_id", ["", "x" * 257])
def test_an_external_id_has_1_to_256_characters(organization: Organization, external_id: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        organization.insert("visitors", organization_id=organization.id, id=uuid4(), external_id=external_id)
    assert constraint(error) == "visitors_external_id_length"


@pytest.mark.parametrize(("column", "name"), [("contact_id", "cases_contact_fk"), ("owner_id", "cases_owner_fk")])
def test_a_case_refers_to_its_own_organization_only(organization: Organization, column: str, name: str) -> None:
    other = Organization(organization.connection, organization.box)
    foreign = {"contact_id": other.visitor().contact_ids[0], "owner_id": other.user_id}[column]
    values: dict[str, Any] = {"contact_id": None, column: foreign}
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as error:
        organization.case(**values)
    assert constraint(error) == name


def test_a_contact_refers_to_a_visitor_of_its_own_organization(organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as error:
        organization.visitor().contact(visitor_id=other.visitor().id)
    assert constraint(error) == "contacts_visitor_fk"


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "HS256", "public_key": "x"},
        {"algorithm": "RS256", "encrypted_secret": "x"},
        {"algorithm": "HS256"},
        {"algorithm": "EdDSA"},
        {"algorithm": "HS256", "encrypted_secret": "x", "public_key": "x"},
    ],
)
def test_a_key_has_the_material_of_its_algorithm(organization: Organization, values: dict[str, str]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        organization.insert("signing_keys", organization_id=organization.id, id=uuid4(), **values)
    assert constraint(error) == "signing_keys_material_fits_algorithm"


def test_a_key_has_a_known_algorithm(organization: Organization) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        organization.public_key("none", "x")
    assert constraint(error) == "signing_keys_algorithm_known"


def test_a_contact_has_times_of_the_years_1_to_9999(organization: Organization) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        organization.visitor().contact(updated_at="infinity")
    assert constraint(error) == "contacts_times_in_range"


@pytest.mark.parametrize(
    ("table", "bounds"),
    [
        ("organizations", {"name": 256}),
        ("users", {"email": 256, "first_name": 256, "last_name": 256, "alias": 256, "title": 256, "avatar_url": 2048}),
        ("api_tokens", {"description": 256}),
        ("signing_keys", {"encrypted_secret": 8192, "public_key": 8192}),
        ("visitors", {"external_id": 256}),
        ("contacts", {"first_name": 256, "last_name": 256, "email": 256, "phone": 256}),
        ("case_funnel_stages", {"name": 256}),
        ("import_runs", {}),
        ("removed_rows", {}),
        ("erasure_keys", {}),
        ("erased_visitors", {}),
        ("cases", {"case_number": 256, "subject": 1000, "description": 65536}),
        ("activities", {}),
        ("messages", {"text": 10000}),
        ("events", {"external_id": 256, "case_number": 256}),
    ],
)
def test_every_text_has_a_bound(connection: psycopg.Connection, table: str, bounds: dict[str, int]) -> None:
    checks = " ".join(
        text
        for (text,) in connection.execute(
            "select pg_get_constraintdef(oid) from pg_constraint where contype = 'c' and conrelid = %s::regclass",
            [table],
        )
    )
    texts = connection.execute(
        "select column_name from information_schema.columns where table_schema = 'public' and table_name = %s"
        " and data_type = 'text' and is_generated = 'NEVER'",
        [table],
    ).fetchall()
    for (column,) in texts:
        limits = (f"char_length({column}) <= {bounds.get(column)}", f"(char_length({column}) >= 1) AND (char_length")
        assert any(limit in checks for limit in limits) or f"({column} = ANY" in checks, column


def test_every_table_carries_the_organization_and_every_key_begins_with_it(
    connection: psycopg.Connection,
) -> None:
    tables = connection.execute(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
        " and relname <> 'schema_version'"
    ).fetchall()
    assert len(tables) == 16
    keys = connection.execute(
        """
        select c.conname, c.conrelid::regclass::text, a.attname
        from pg_constraint c
        join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
        where c.contype in ('p', 'u', 'f') and c.connamespace = 'public'::regnamespace
            and c.conrelid <> 'schema_version'::regclass
        """
    ).fetchall()
    assert {table for _, table, _ in keys} == {table for (table,) in tables}
    assert {column for _, _, column in keys} == {"organization_id"}


def test_every_index_is_used_by_a_constraint_or_by_a_statement(connection: psycopg.Connection) -> None:
    plain = connection.execute(
        """
        select i.indexrelid::regclass::text
        from pg_index i join pg_class t on t.oid = i.indrelid
        where t.relnamespace = 'public'::regnamespace
            and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
        """
    ).fetchall()
    assert {name for (name,) in plain} == {
        "contacts_of_visitor",
        "cases_of_organization_by_creation",
        "cases_of_organization_by_update",
        "cases_of_contact_by_creation",
        "cases_of_contact_by_update",
        "cases_of_contact_by_status_and_creation",
        "cases_of_contact_by_status_and_update",
        "cases_of_contact_by_priority_and_creation",
        "cases_of_contact_by_priority_and_update",
        "cases_of_contact_by_channel_and_creation",
        "cases_of_contact_by_channel_and_update",
        "activities_of_case",
        "messages_of_case",
        "messages_of_activity",
        "unread_messages_of_case",
        "events_of_visitor",
    }


def message(organization: Organization, **values: Any) -> None:
    """Insert a message into a new activity of a new case."""
    case_id, activity_id = organization.case(None), uuid4()
    about = {"organization_id": organization.id, "case_id": case_id, "created_at": LONG_AGO}
    organization.insert("activities", id=activity_id, channel="email", updated_at=LONG_AGO, **about)
    given = {"id": uuid4(), "activity_id": activity_id, "sender_type": "user", "text": "x", "is_private": False}
    organization.insert("messages", **(about | given | values))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"sender_type": "bot"}, "messages_sender_type_known"),
        ({"sender_type": "visitor", "is_private": True}, "messages_of_visitors_not_private"),
        ({"text": ""}, "messages_text_length"),
        ({"text": "x" * 10_001}, "messages_text_length"),
        ({"created_at": "infinity"}, "messages_times_in_range"),
        ({"read_at": "-infinity"}, "messages_times_in_range"),
        ({"sender_user_id": UUID(int=9)}, "messages_sender_user_fk"),
        ({"case_id": UUID(int=9)}, "messages_activity_fk"),
    ],
)
def test_a_message_keeps_its_promises(organization: Organization, values: dict[str, Any], name: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError) as error:
        message(organization, **values)
    assert constraint(error) == name


def test_a_message_that_no_user_wrote_names_none(organization: Organization) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        message(organization, sender_type="system", sender_user_id=organization.user_id)
    assert constraint(error) == "messages_sender_user_fits_type"


def test_a_message_says_itself_whether_it_is_a_note(organization: Organization) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation):
        message(organization, is_private=None)


def test_a_case_that_goes_takes_its_messages_along(organization: Organization) -> None:
    message(organization)
    organization.connection.execute("delete from cases where organization_id = %s", [organization.id])
    for table in ("activities", "messages"):
        statement = f"select 1 from {table} where organization_id = %s".encode()
        assert organization.connection.execute(statement, [organization.id]).fetchall() == []


def test_closing_a_case_sets_both_or_neither(organization: Organization) -> None:
    case_id = organization.case(organization.visitor().contact_ids[0])
    closed_at = LONG_AGO + timedelta(days=1)
    with pytest.raises(psycopg.errors.CheckViolation):
        organization.update("cases", "id", case_id, status="Closed")
    organization.update("cases", "id", case_id, status="Closed", closed_at=closed_at)


def test_the_planner_expects_an_organization_of_any_size(session_connection: psycopg.Connection) -> None:
    """In every table in which one may have several rows; otherwise it expects as many as most of them have."""
    rows = session_connection.execute("""
        select a.attoptions is not null and 'n_distinct=1' = any (a.attoptions)
        from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indisprimary and i.indnkeyatts > 1 and a.attname = 'organization_id'
            and i.indrelid::regclass::text !~ '[.]'
    """).fetchall()
    assert len(rows) == 13
    assert set(rows) == {(True,)}

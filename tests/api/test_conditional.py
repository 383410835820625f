"""ETag and If-None-Match: 304 exactly while nothing that is shown has changed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg import sql

from cases_service.database.connection import query_count
from tests.api.lookup3 import text_with_hash
from tests.factories import LONG_AGO, Organization, Visitor, assert_problem, get


@pytest.fixture
def visitor(organization: Organization) -> Visitor:
    visitor = organization.visitor(contacts=2)
    stage = uuid4()
    organization.insert("case_funnel_stages", organization_id=organization.id, id=stage, name="New", position=1)
    for n in range(3):
        organization.case(
            visitor.contact_ids[n % 2],
            LONG_AGO + timedelta(hours=n),
            owner_id=organization.user_id,
            case_funnel_stage_id=stage,
        )
    return visitor


def paths(client: FlaskClient, visitor: Visitor) -> list[str]:
    path = visitor.path
    case_id = get(client, visitor.organization, path).get_json()["results"][0]["id"]
    return [f"{path}?page_size=2", f"{path}/{case_id}", f"{path}/summary"]


def test_what_has_not_changed_is_304_without_a_body(client: FlaskClient, visitor: Visitor) -> None:
    for path in paths(client, visitor):
        first = get(client, visitor.organization, path)
        tag = first.headers["ETag"]
        assert tag.startswith('W/"')
        assert first.headers["Cache-Control"] == "private, no-cache"
        for given in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
            again = get(client, visitor.organization, path, **{"If-None-Match": given})
            assert (again.status_code, again.data) == (304, b"")
            assert again.headers["ETag"] == tag
            assert again.headers["Cache-Control"] == "private, no-cache"
            assert again.headers["Vary"] == "Authorization, X-External-Identity"
        head = client.head(path, headers=visitor.organization.headers(**{"If-None-Match": tag}))
        assert head.status_code == 304
        assert get(client, visitor.organization, path, **{"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("suffix", ["-gzip", "-br", "-zstd", ";gzip", "--gzip"])
def test_a_tag_that_a_proxy_has_marked_as_compressed_is_known(
    client: FlaskClient, visitor: Visitor, suffix: str
) -> None:
    for path in paths(client, visitor):
        tag = get(client, visitor.organization, path).headers["ETag"]
        for given in (tag, tag.removeprefix("W/")):
            marked = given.removesuffix('"') + suffix + '"'
            assert get(client, visitor.organization, path, **{"If-None-Match": marked}).status_code == 304
        other = tag.removesuffix('"') + '-other"'
        assert get(client, visitor.organization, path, **{"If-None-Match": other}).status_code == 200


@pytest.mark.parametrize("given", ["", "x", '"', "W/", ",,,", '"a" "b"', "\u00e9"])
def test_what_is_no_tag_is_ignored(client: FlaskClient, visitor: Visitor, given: str) -> None:
    assert get(client, visitor.organization, visitor.path, **{"If-None-Match": given}).status_code == 200


def rename_owner(visitor: Visitor) -> None:
    visitor.organization.update("users", "id", visitor.organization.user_id, title="Lead")


def rename_contact(visitor: Visitor) -> None:
    visitor.organization.update("contacts", "id", visitor.contact_ids[0], first_name="New")


def rename_stage(visitor: Visitor) -> None:
    visitor.organization.connection.execute(
        "update case_funnel_stages set name = 'Renamed' where organization_id = %s", [visitor.organization.id]
    )


@pytest.mark.parametrize("change", [rename_owner, rename_contact, rename_stage])
def test_nested_objects_count(client: FlaskClient, visitor: Visitor, change: Callable[[Visitor], Any]) -> None:
    for path in paths(client, visitor)[:2]:
        tag = get(client, visitor.organization, path).headers["ETag"]
        change(visitor)
        assert get(client, visitor.organization, path, **{"If-None-Match": tag}).status_code == 200
        visitor.organization.connection.execute(
            "update users set title = null where organization_id = %s", [visitor.organization.id]
        )
        visitor.organization.connection.execute(
            "update contacts set first_name = null where organization_id = %s", [visitor.organization.id]
        )
        visitor.organization.connection.execute(
            "update case_funnel_stages set name = 'New' where organization_id = %s", [visitor.organization.id]
        )


def test_fields_count(client: FlaskClient, visitor: Visitor) -> None:
    tags = {
        get(client, visitor.organization, f"{visitor.path}{query}").headers["ETag"]
        for query in ("", "?fields=id", "?fields=id,status")
    }
    assert len(tags) == 3
    tag = get(client, visitor.organization, f"{visitor.path}?fields=id").headers["ETag"]
    rename_owner(visitor)
    path = f"{visitor.path}?fields=id"
    assert get(client, visitor.organization, path, **{"If-None-Match": tag}).status_code == 304


def test_a_case_beyond_the_page_counts_once_a_link_appears(client: FlaskClient, visitor: Visitor) -> None:
    path = f"{visitor.path}?page_size=3"
    tag = get(client, visitor.organization, path).headers["ETag"]
    visitor.organization.case(visitor.contact_ids[0], LONG_AGO + timedelta(days=9))
    assert get(client, visitor.organization, path, **{"If-None-Match": tag}).status_code == 200


def test_the_url_does_not_count(client: FlaskClient, visitor: Visitor) -> None:
    first = get(client, visitor.organization, f"{visitor.path}?page_size=2")
    renewed = visitor.organization.jwt(visitor.external_id, jti="another")
    path = f"/api/v5/orgs/{visitor.organization.id}/external-visitors/{renewed}/cases?page_size=2&format=json"
    again = get(client, visitor.organization, path, Host="127.0.0.1", **{"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304


def test_preconditions_come_after_every_check(client: FlaskClient, visitor: Visitor) -> None:
    given = {"If-None-Match": "*"}
    assert_problem(client.get(visitor.path, headers=given), 401, "authentication_required")
    assert_problem(get(client, visitor.organization, f"{visitor.path}/x", **given), 404, "case_not_found")
    nobody = f"/api/v5/orgs/{visitor.organization.id}/external-visitors/{visitor.organization.jwt('nobody')}/cases"
    assert_problem(get(client, visitor.organization, nobody, **given), 404, "visitor_not_found")
    assert_problem(get(client, visitor.organization, f"{visitor.path}?page_size=0", **given), 400, "invalid_parameter")


# Another value for each column from which an attribute comes, of the table that has it and of each object in a case.
CHANGES: dict[str, dict[str, Any]] = {
    "users": dict.fromkeys(("email", "first_name", "last_name", "alias", "title", "avatar_url"), "other"),
    "contacts": {
        **dict.fromkeys(("first_name", "last_name", "email", "phone"), "other"),
        **dict.fromkeys(("created_at", "updated_at"), LONG_AGO + timedelta(microseconds=1)),
    },
    "case_funnel_stages": {"name": "other", "position": 2},
    "cases": {
        **dict.fromkeys(("case_number", "subject", "description"), "other"),
        **dict.fromkeys(("owner_id", "created_by_user_id", "updated_by_user_id", "case_funnel_stage_id"), None),
        **dict.fromkeys(("created_at", "updated_at", "closed_at"), LONG_AGO + timedelta(microseconds=1)),
        "status": "Pending",
        "priority": 5,
        "latest_messaging_channel": "email",
        "channel_priority": 2,
        "is_waiting": True,
        "unread_message_count": 1,
        "visitor_unread_message_count": 1,
        "contact_id": None,
    },
}
DERIVED = {"full_name", "is_closed", "channel_number", "content_hash"}
IDENTITY = {"organization_id", "id"}


@pytest.mark.parametrize(("table", "column"), [(table, column) for table in CHANGES for column in CHANGES[table]])
def test_every_column_that_is_shown_counts(
    client: FlaskClient, organization: Organization, table: str, column: str
) -> None:
    visitor = organization.visitor(contacts=2)
    stage, agents = uuid4(), [organization.user() for _ in range(3)]
    organization.insert("case_funnel_stages", organization_id=organization.id, id=stage, name="New", position=1)
    case = organization.case(
        visitor.contact_ids[0],
        owner_id=agents[0],
        created_by_user_id=agents[1],
        updated_by_user_id=agents[2],
        case_funnel_stage_id=stage,
        status="Closed" if column == "closed_at" else "Open",
    )
    organization.case(visitor.contact_ids[0])
    keys = {"users": agents, "contacts": visitor.contact_ids[:1], "case_funnel_stages": [stage], "cases": [case]}
    for key in keys[table]:
        tag = get(client, organization, visitor.path).headers["ETag"]
        value = CHANGES[table][column]
        organization.update(table, "id", key, **{column: visitor.contact_ids[1] if column == "contact_id" else value})
        assert get(client, organization, visitor.path, **{"If-None-Match": tag}).status_code == 200
        tag = get(client, organization, visitor.path).headers["ETag"]
        assert get(client, organization, visitor.path, **{"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("table", CHANGES)
def test_no_column_is_forgotten(session_connection: psycopg.Connection, table: str) -> None:
    found = session_connection.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped", [table]
    )
    hidden = {"visitor_id"} if table == "contacts" else set()
    assert {name for (name,) in found} - IDENTITY - hidden - DERIVED == set(CHANGES[table])


def test_a_poll_that_finds_nothing_new_is_two_statements_and_one_that_does_is_twice_two(
    client: FlaskClient, visitor: Visitor
) -> None:
    for query in ("", "?is_closed=false&ordering=-updated_at", "?page_size=1"):
        path = f"{visitor.path}{query}"
        tag = get(client, visitor.organization, path).headers["ETag"]
        assert get(client, visitor.organization, path, **{"If-None-Match": tag}).status_code == 304
        assert query_count.value == 2
        assert get(client, visitor.organization, path, **{"If-None-Match": '"older"'}).status_code == 200
        assert query_count.value == 4


def test_no_text_can_be_chosen_that_hides_a_change(client: FlaskClient, organization: Organization) -> None:
    """The sum of PostgreSQL's own hashes of a case's texts can be kept by twelve bytes at a description's end."""
    visitor = organization.visitor()
    case = organization.case(visitor.contact_ids[0], status="Open", description="Nothing to see. " * 3)
    tag = get(client, organization, visitor.path).headers["ETag"]
    hashes = 'select hash_array_extended(array[%s] collate "C", 2), hashtextextended(%s collate "C", 2)'
    sums = 'select hash_array_extended(array[description, status] collate "C", 2) from cases where id = %s'
    (before,) = organization.connection.execute(sums, [case]).fetchone() or ()
    (_, pending) = organization.connection.execute(hashes, ["Pending", "Pending"]).fetchone() or ()
    # A sum of two is (31 + one) * 31 + other, modulo 2**64.
    wanted = ((before - pending) * pow(31, -1, 2**64) - 31) % 2**64
    description = text_with_hash(wanted, beginning="The refund was refused. " * 2, seed=2)
    organization.update("cases", "id", case, status="Pending", description=description)
    assert organization.connection.execute(sums, [case]).fetchone() == (before,)
    assert get(client, organization, visitor.path, **{"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("table", ["cases", "contacts", "users", "case_funnel_stages"])
def test_a_row_that_is_written_in_any_way_is_told_from_what_it_was(
    client: FlaskClient, organization: Organization, table: str
) -> None:
    """Even where what is shown is the same: nothing but the write itself has to be trusted."""
    visitor = organization.visitor()
    stage = uuid4()
    organization.insert("case_funnel_stages", organization_id=organization.id, id=stage, name="New", position=1)
    organization.case(visitor.contact_ids[0], owner_id=organization.user_id, case_funnel_stage_id=stage)
    tag = get(client, organization, visitor.path).headers["ETag"]
    organization.connection.execute(
        sql.SQL("update {} set id = id where organization_id = %s").format(sql.Identifier(table)), [organization.id]
    )
    assert get(client, organization, visitor.path, **{"If-None-Match": tag}).status_code == 200


def test_cleaning_up_in_the_database_changes_no_tag(
    client: FlaskClient, visitor: Visitor, connection: psycopg.Connection
) -> None:
    tag = get(client, visitor.organization, visitor.path).headers["ETag"]
    for table in ("cases", "contacts", "users", "case_funnel_stages"):
        connection.execute(f"vacuum (freeze) {table}".encode())
    assert get(client, visitor.organization, visitor.path, **{"If-None-Match": tag}).status_code == 304

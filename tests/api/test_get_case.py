"""GET .../cases/<case_id>: the whole case, of this visitor only."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient

from tests.factories import LONG_AGO, Organization, assert_problem, get

NO_CASE = "1b261400-48db-4d87-83d5-f0970512cb28"
ATTRIBUTES = [
    "id", "organization_id", "case_number", "contact_id", "contact", "owner_id", "owner", "subject", "description",
    "status", "priority", "priority_label", "latest_messaging_channel", "is_closed", "closed_at", "is_waiting",
    "unread_message_count", "created_at", "updated_at", "created_by_user_id", "created_by_user",
    "updated_by_user_id", "updated_by_user", "case_funnel_stage", "case_funnel_stage_id", "channel_priority",
    "visitor_unread_message_count",
]  # fmt: skip


def test_a_case_is_whole(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    contact_id = visitor.contact(first_name="Grace", last_name="Hopper", email="g@x.example", phone="+1 2")
    author_id = organization.user(
        email="a@x.example", last_name="Turing", alias="at", title="Agent", avatar_url="https://x.example/a.png"
    )
    stage_id = uuid4()
    organization.insert("case_funnel_stages", organization_id=organization.id, id=stage_id, name="Triage", position=2)
    closed_at = datetime(2016, 1, 2, 3, 4, 5, 6789, tzinfo=UTC)
    case_id = organization.case(
        contact_id,
        case_number="C-1",
        owner_id=organization.user_id,
        subject="Über",
        description="Line\nbreak",
        status="Closed",
        priority=5,
        latest_messaging_channel="webchat",
        channel_priority=4,
        visitor_unread_message_count=5,
        closed_at=closed_at,
        is_waiting=True,
        unread_message_count=7,
        updated_at=closed_at,
        created_by_user_id=author_id,
        updated_by_user_id=organization.user_id,
        case_funnel_stage_id=stage_id,
    )
    owner = {
        "id": str(organization.user_id),
        "organization_id": str(organization.id),
        "email": None,
        "first_name": "Ada",
        "last_name": "Byron",
        "full_name": "Ada Byron",
        "alias": None,
        "title": None,
        "avatar_url": None,
    }
    document = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    assert document == {
        "id": str(case_id),
        "organization_id": str(organization.id),
        "case_number": "C-1",
        "contact_id": str(contact_id),
        "contact": {
            "id": str(contact_id),
            "organization_id": str(organization.id),
            "first_name": "Grace",
            "last_name": "Hopper",
            "full_name": "Grace Hopper",
            "email": "g@x.example",
            "phone": "+1 2",
            "created_at": "2015-08-31T16:32:17.879Z",
            "updated_at": "2015-08-31T16:32:17.879Z",
        },
        "owner_id": str(organization.user_id),
        "owner": owner,
        "subject": "Über",
        "description": "Line\nbreak",
        "status": "Closed",
        "priority": 5,
        "priority_label": "Critical",
        "latest_messaging_channel": "webchat",
        "is_closed": True,
        "closed_at": "2016-01-02T03:04:05.006Z",
        "is_waiting": True,
        "unread_message_count": 7,
        "created_at": "2015-08-31T16:32:17.879Z",
        "updated_at": "2016-01-02T03:04:05.006Z",
        "created_by_user_id": str(author_id),
        "created_by_user": {
            "id": str(author_id),
            "organization_id": str(organization.id),
            "email": "a@x.example",
            "first_name": None,
            "last_name": "Turing",
            "full_name": "Turing",
            "alias": "at",
            "title": "Agent",
            "avatar_url": "https://x.example/a.png",
        },
        "updated_by_user_id": str(organization.user_id),
        "updated_by_user": owner,
        "case_funnel_stage": {
            "id": str(stage_id),
            "organization_id": str(organization.id),
            "name": "Triage",
            "position": 2,
        },
        "case_funnel_stage_id": str(stage_id),
        "channel_priority": 4,
        "visitor_unread_message_count": 5,
    }
    assert list(document) == ATTRIBUTES


def test_what_has_no_value_is_null(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0])
    document = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    assert list(document) == ATTRIBUTES
    assert {name for name, value in document.items() if value is None} == {
        "owner_id", "owner", "subject", "description", "latest_messaging_channel", "closed_at", "created_by_user_id",
        "created_by_user", "updated_by_user_id", "updated_by_user", "case_funnel_stage", "case_funnel_stage_id",
        "channel_priority",
    }  # fmt: skip


def test_the_collection_shows_the_same_case(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0], owner_id=organization.user_id)
    results = get(client, organization, visitor.path).get_json()["results"]
    assert results == [get(client, organization, f"{visitor.path}/{case_id}").get_json()]


@pytest.mark.parametrize(
    ("status", "is_closed"), [("Open", False), ("In Progress", False), ("Pending", False), ("Closed", True)]
)
def test_is_closed_follows_the_status(
    client: FlaskClient, organization: Organization, status: str, is_closed: bool
) -> None:
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0], status=status)
    document = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    assert (document["status"], document["is_closed"]) == (status, is_closed)
    assert (document["closed_at"] is not None) == is_closed


@pytest.mark.parametrize(("priority", "label"), [(1, "None"), (2, "Low"), (3, "Normal"), (4, "High"), (5, "Critical")])
def test_a_priority_has_a_label(client: FlaskClient, organization: Organization, priority: int, label: str) -> None:
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0], priority=priority)
    document = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    assert (document["priority"], document["priority_label"]) == (priority, label)


@pytest.mark.parametrize(
    ("first", "last", "full"),
    [("Ada", "Byron", "Ada Byron"), ("Ada", None, "Ada"), ("", "Byron", "Byron"), ("", "", None), (None, "", None)],
)
def test_a_full_name_joins_the_parts_that_are_not_empty(
    client: FlaskClient, organization: Organization, first: str | None, last: str | None, full: str | None
) -> None:
    visitor = organization.visitor()
    contact_id = visitor.contact(first_name=first, last_name=last)
    user_id = organization.user(first_name=first, last_name=last)
    case_id = organization.case(contact_id, owner_id=user_id)
    document = get(client, organization, f"{visitor.path}/{case_id}").get_json()
    assert (document["contact"]["full_name"], document["owner"]["full_name"]) == (full, full)


def test_an_id_may_be_written_in_upper_case(client: FlaskClient, organization: Organization) -> None:
    visitor = organization.visitor()
    case_id = organization.case(visitor.contact_ids[0], id=UUID("abcdefab-cdef-4bcd-8fab-" + uuid4().hex[:12]))
    path = visitor.path.replace(str(organization.id), str(organization.id).upper())
    document = get(client, organization, f"{path}/{str(case_id).upper()}").get_json()
    assert (document["id"], document["organization_id"]) == (str(case_id), str(organization.id))


@pytest.mark.parametrize(
    "case_id",
    [
        "x",
        "0",
        NO_CASE,
        NO_CASE.replace("-", ""),
        f"{{{NO_CASE}}}",
        f"urn:uuid:{NO_CASE}",
        "%00",
        "%F0%9F%98%80",
        "a" * 3000,
    ],
)
def test_what_is_no_case_is_not_found(client: FlaskClient, organization: Organization, case_id: str) -> None:
    response = get(client, organization, f"{organization.visitor().path}/{case_id}")
    assert_problem(response, 404, "case_not_found")


def test_another_visitors_case_is_not_found(client: FlaskClient, organization: Organization) -> None:
    theirs = organization.visitor().cases(1)[0]
    response = get(client, organization, f"{organization.visitor().path}/{theirs}")
    assert_problem(response, 404, "case_not_found")


def test_a_case_without_contact_is_not_found(client: FlaskClient, organization: Organization) -> None:
    case_id = organization.case(None)
    response = get(client, organization, f"{organization.visitor().path}/{case_id}")
    assert_problem(response, 404, "case_not_found")


def test_another_organizations_case_is_not_found(client: FlaskClient, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    theirs = other.visitor("same").cases(1)[0]
    response = get(client, organization, f"{organization.visitor('same').path}/{theirs}")
    assert_problem(response, 404, "case_not_found")


def test_the_same_id_in_two_organizations_is_two_cases(client: FlaskClient, organization: Organization) -> None:
    other = Organization(organization.connection, organization.box)
    case_id = uuid4()
    for owner in (organization, other):
        visitor = owner.visitor("same")
        owner.case(visitor.contact_ids[0], id=case_id, subject=str(owner.id), created_at=LONG_AGO)
        document = get(client, owner, f"{visitor.path}/{case_id}").get_json()
        assert document["subject"] == str(owner.id)


def test_the_visitor_is_looked_for_before_the_case(client: FlaskClient, organization: Organization) -> None:
    path = f"/api/v5/orgs/{organization.id}/external-visitors/{organization.jwt('nobody')}/cases/x"
    assert_problem(get(client, organization, path), 404, "visitor_not_found")


@pytest.mark.parametrize(
    "query", ["page_size=5", "ordering=created_at", "cursor=x", "format=xml", "format=json&format=json"]
)
def test_the_parameters_of_the_collection_are_wrong_here(
    client: FlaskClient, organization: Organization, query: str
) -> None:
    visitor = organization.visitor()
    case_id = visitor.cases(1)[0]
    assert_problem(get(client, organization, f"{visitor.path}/{case_id}?{query}"), 400, "invalid_parameter")
    assert get(client, organization, f"{visitor.path}/{case_id}?format=json").status_code == 200

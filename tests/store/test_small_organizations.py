"""Most organizations have one row of a kind, and one has many: statistics by which any of them seems to have one."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest

from cases_service.cases.filters import Filters
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.cases.pagination import Cursor, Position, visitor_tag
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query
from cases_service.store import cases, conversations, organization_cases, organization_pages
from tests.factories import LONG_AGO, Organization, Visitor
from tests.store.test_conversation_query import fill
from tests.store.test_page_query import NO_FILTERS, buffers_of, explained, nodes

SMALL = 3000
OTHERS = 300
CONTACTS = 3
CASES = 2000
MESSAGES = 500
PAGE_SIZE = 25
FILL = (
    """
    insert into organizations (organization_id, name, subscription_status)
    select md5('small ' || n)::uuid, 'Small', 'active' from generate_series(1, %(small)s) n
    """,
    """
    insert into visitors (organization_id, id, external_id)
    select md5('small ' || n)::uuid, md5('visitor ' || n)::uuid, 'one' from generate_series(1, %(small)s) n
    """,
    """
    insert into contacts (organization_id, id, visitor_id, first_name, created_at, updated_at)
    select md5('small ' || n)::uuid, md5('contact ' || n)::uuid, md5('visitor ' || n)::uuid, 'One', now(), now()
    from generate_series(1, %(small)s) n
    """,
    """
    insert into cases (organization_id, id, case_number, contact_id, status, priority, created_at, updated_at)
    select md5('small ' || n)::uuid, md5('case ' || n)::uuid, '1', md5('contact ' || n)::uuid, 'Open', 1, now(), now()
    from generate_series(1, %(small)s) n
    """,
    """
    insert into activities (organization_id, id, case_id, channel, created_at, updated_at)
    select md5('small ' || n)::uuid, md5('activity ' || n)::uuid, md5('case ' || n)::uuid, 'email', now(), now()
    from generate_series(1, %(small)s) n
    """,
    """
    insert into messages (organization_id, id, case_id, activity_id, sender_type, text, created_at, is_private)
    select md5('small ' || n)::uuid, md5('message ' || n)::uuid, md5('case ' || n)::uuid, md5('activity ' || n)::uuid,
        'visitor', 'Hello', now(), false
    from generate_series(1, %(small)s) n
    """,
)


@dataclass
class Large:
    """A visitor of the organization that has many, and one of their cases, with a long conversation."""

    visitor: Visitor
    case_id: UUID


@pytest.fixture(scope="module")
def large(session_connection: psycopg.Connection, box: SecretBox) -> Large:
    """Return them once the planner knows of the small organizations, too."""
    # Vacuum marks pages as visible to all only where the commits are on disk.
    session_connection.execute("set synchronous_commit = on")
    for statement in FILL:
        session_connection.execute(statement, {"small": SMALL})
    organization = Organization(session_connection, box)
    for _ in range(OTHERS):
        organization.visitor()
    visitor = organization.visitor(contacts=CONTACTS)
    case_id, *_ = visitor.cases(CASES)
    fill(organization, case_id, MESSAGES)
    session_connection.execute("vacuum analyze visitors, contacts, cases, activities, messages")
    session_connection.execute("reset synchronous_commit")
    return Large(visitor, case_id)


def queries(large: Large) -> Iterator[tuple[str, Query[Any], int]]:
    """Yield what is asked, with the number of rows that each table of a case's contents may be asked for."""
    visitor = large.visitor
    about: dict[str, Any] = {"organization_id": visitor.organization.id, "external_id": visitor.external_id}
    page: dict[str, Any] = {**about, "ordering": "created_at", "cursor": None, "page_size": PAGE_SIZE}
    cases_: dict[str, Any] = {**page, "filters": NO_FILTERS, "fields": None}
    tag = visitor_tag(visitor.id)
    middle = Cursor(Position(int(LONG_AGO.timestamp()) * 1_000_000 + CASES // 2 * 1_000_000, UUID(int=0)), False, tag)
    two = Filters(statuses=frozenset({"Open", "Closed"}), channels=frozenset({"email", "null"}))
    of_case: dict[str, Any] = {**about, "case_id": large.case_id}
    yield "page", cases.list_cases(**cases_), 4 * PAGE_SIZE
    yield "page of ids", cases.list_cases(**cases_ | {"fields": frozenset({"id"})}), 4 * PAGE_SIZE
    yield "page in the middle", cases.list_cases(**cases_ | {"cursor": middle}), 4 * PAGE_SIZE
    yield "filtered page", cases.list_cases(**cases_ | {"filters": two}), 9 * PAGE_SIZE
    yield "case", cases.get_case(**of_case, fields=None), 2
    yield "case of ids", cases.get_case(**of_case, fields=frozenset({"id"})), 2
    yield "summary", cases.summarize_cases(**about, filters=NO_FILTERS), CASES
    yield "visitor with contacts", cases.get_visitor(**about), CONTACTS
    yield "messages", conversations.list_things("messages", **page, case_id=large.case_id), 3 * PAGE_SIZE
    yield "activities", conversations.list_things("activities", **page, case_id=large.case_id), 3 * PAGE_SIZE
    yield "case of a visitor", conversations.find_case(**of_case), 2
    own: dict[str, Any] = {name: cases_[name] for name in cases_ if name not in ("external_id", "filters")}
    everything = OrganizationFilters(common=NO_FILTERS)
    of_visitor = OrganizationFilters(common=NO_FILTERS, external_id=visitor.external_id)
    yield "organization's page", organization_pages.list_cases(**own, filters=everything), 3 * PAGE_SIZE
    yield "organization's page of a visitor", organization_pages.list_cases(**own, filters=of_visitor), 6 * PAGE_SIZE
    organization_case = organization_cases.get_case(organization_id=visitor.organization.id, case_id=large.case_id)
    yield "organization's case", organization_case, 2


def test_a_request_costs_what_it_shows_and_not_what_the_organization_has(database: Database, large: Large) -> None:
    for name, query, most in queries(large):
        plan = database.read(
            lambda connection, query=query: explained(connection, large.visitor.organization.id, query)  # type: ignore[misc]
        )[1]
        read: Counter[str] = Counter()
        for node in nodes(plan):
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            read[node.get("Relation Name", "")] += round(rows * node["Actual Loops"])
        assert read["visitors"] <= 1, name
        assert read["contacts"] <= CONTACTS + PAGE_SIZE, name
        assert max(read["cases"], read["activities"], read["messages"]) <= most, name
        assert buffers_of(plan) <= 4 * most + 40, name

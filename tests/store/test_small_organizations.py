"""Most organizations have one contact, and one has many: statistics by which every organization looks like one row."""

from collections import Counter
from typing import Any
from uuid import UUID

import psycopg
import pytest

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query
from cases_service.store import cases, conversations
from tests.factories import Organization, Visitor
from tests.store.test_page_query import NO_FILTERS, explained, nodes

SMALL = 3000
OTHERS = 300
CONTACTS = 3
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
)


@pytest.fixture(scope="module")
def visitor(session_connection: psycopg.Connection, box: SecretBox) -> Visitor:
    """Return a visitor of the organization that has many, once the planner knows of the small ones."""
    # Vacuum marks pages as visible to all only where the commits are on disk.
    session_connection.execute("set synchronous_commit = on")
    for statement in FILL:
        session_connection.execute(statement, {"small": SMALL})
    organization = Organization(session_connection, box)
    for _ in range(OTHERS):
        organization.visitor()
    visitor = organization.visitor(contacts=CONTACTS)
    visitor.cases(10)
    session_connection.execute("vacuum analyze visitors, contacts, cases")
    session_connection.execute("reset synchronous_commit")
    return visitor


def queries(visitor: Visitor) -> dict[str, Query[Any]]:
    about: dict[str, Any] = {"organization_id": visitor.organization.id, "external_id": visitor.external_id}
    case_id = UUID(str(visitor.cases(1)[0]))
    walk: dict[str, Any] = {"ordering": "created_at", "cursor": None, "page_size": 25}
    return {
        "page": cases.list_cases(**about, **walk, filters=NO_FILTERS, fields=frozenset({"id"})),
        "case": cases.get_case(**about, case_id=case_id, fields=frozenset({"id"})),
        "summary": cases.summarize_cases(**about, filters=NO_FILTERS),
        "visitor with contacts": cases.get_visitor(**about),
        "messages": conversations.list_things("messages", **about, **walk, case_id=case_id),
        "case of a visitor": conversations.find_case(**about, case_id=case_id),
    }


def test_a_visitor_costs_their_own_contacts_and_not_those_of_the_organization(
    database: Database, visitor: Visitor
) -> None:
    for name, query in queries(visitor).items():
        plan = database.read(
            lambda connection, query=query: explained(connection, visitor.organization.id, query)  # type: ignore[misc]
        )[1]
        read: Counter[str] = Counter()
        for node in nodes(plan):
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            read[node.get("Relation Name", "")] += round(rows * node["Actual Loops"])
        assert read["visitors"] == 1, name
        assert 0 < read["contacts"] <= CONTACTS, name
        assert name in ("page", "summary") or read["cases"] <= 2, name

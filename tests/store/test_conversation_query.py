"""The cost of a page of messages, counted in buffers: it depends on the page, not on how many messages there are."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from cases_service.cases.pagination import Cursor, Position, visitor_tag
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query, preamble
from cases_service.store.conversations import Page, Things, count_unread, list_things
from tests.factories import Organization, Visitor

MESSAGES = 100_000
ORDINARY = 30
PAGE_SIZE = 25
START = 1577836800_000000
ORDERINGS = ("created_at", "-created_at")


class Long:
    """A case with very many messages, and one with as many as others have. Every tenth message is a note."""

    def __init__(self, organization: Organization) -> None:
        self.organization = organization
        self.visitor: Visitor = organization.visitor()
        self.ordinary, self.long = (organization.case(self.visitor.contact_ids[0]) for _ in range(2))
        for case_id, number in ((self.ordinary, ORDINARY), (self.long, MESSAGES)):
            fill(organization, case_id, number)


def fill(organization: Organization, case_id: UUID, number: int) -> None:
    """Fill a case with messages a second apart, and an activity for each hundred."""
    given = {"organization": organization.id, "case": case_id, "number": number,
             "user": organization.user_id}  # fmt: skip
    organization.connection.execute(
        """
        insert into activities (organization_id, id, case_id, channel, created_at, updated_at, ended_at)
        select %(organization)s, gen_random_uuid(), %(case)s, 'webchat',
            '2020-01-01'::timestamptz + n * interval '1 s', now(), now()
        from generate_series(1, greatest(30, %(number)s / 10)) n
        """,
        given,
    )
    organization.connection.execute(
        """
        insert into messages (organization_id, id, case_id, activity_id, sender_type, sender_user_id, text,
            created_at, read_at, is_private)
        select %(organization)s, gen_random_uuid(), %(case)s, a.id,
            case when n %% 10 < 5 then 'visitor' else 'user' end,
            case when n %% 10 < 5 then null else %(user)s::uuid end,
            repeat('x', 200), '2020-01-01'::timestamptz + n * interval '1 s', now(), n %% 10 = 9
        from generate_series(1, %(number)s) n
        cross join (select id from activities where case_id = %(case)s limit 1) a
        """,
        given,
    )


@pytest.fixture(scope="module")
def long(session_connection: psycopg.Connection, box: SecretBox) -> Long:
    made = Long(Organization(session_connection, box))
    for table in ("activities", "messages"):
        session_connection.execute(f"vacuum analyze {table}".encode())
    return made


def cost(database: Database, long: Long, query: Query[Any]) -> tuple[Any, int]:
    """Return the answer, and how many buffers the very plan that was prepared for it looks at."""

    def work(connection: Connection) -> tuple[Any, int]:
        (answer,) = connection.ask(long.organization.id, query, notes=True)
        statement = query.statement
        explain = sql.SQL("explain (analyze, buffers, timing off, format json) execute {}({})").format(
            sql.Identifier(statement.name.decode()),
            sql.SQL(", ").join(sql.Literal(query.parameters[name]) for name in statement.parameters),
        )
        with connection.transaction():
            for command in preamble(long.organization.id, notes=True)[1:]:
                connection.execute(command)
            row = connection.execute(explain).fetchone()
        assert row
        plan = row[0][0]["Plan"]
        return answer, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    return database.read(work)


def cursors(visitor: Visitor, messages: int) -> list[Cursor | None]:
    tag = visitor_tag(visitor.id)
    moments = (0, START + messages // 2 * 1_000_000, START * 2)
    return [None, *(Cursor(Position(m, UUID(int=0)), backward, tag) for m in moments for backward in (False, True))]


@pytest.mark.parametrize("things", ["messages", "activities"])
@pytest.mark.parametrize("of", ["visitor", "organization"])
def test_a_page_costs_the_same_however_many_messages_there_are(
    database: Database, long: Long, things: Things, of: str
) -> None:
    external_id = long.visitor.external_id if of == "visitor" else None

    def ask(case_id: UUID, ordering: str, cursor: Cursor | None) -> Query[Page | None]:
        return list_things(things, organization_id=long.organization.id, case_id=case_id, external_id=external_id,
                           ordering=ordering, cursor=cursor, page_size=PAGE_SIZE)  # fmt: skip

    for ordering in ORDERINGS:
        page, ordinary = cost(database, long, ask(long.ordinary, ordering, None))
        assert page
        for cursor in cursors(long.visitor, MESSAGES):
            page, buffers = cost(database, long, ask(long.long, ordering, cursor))
            assert page is not None
            assert page.has_case
            # Three indexes are a level or two higher, and the notes another stream.
            assert buffers <= ordinary * 1.3, (ordering, cursor, buffers, ordinary)


def test_what_is_unread_is_found_without_what_was_read(database: Database, long: Long) -> None:
    query: Callable[[UUID], Query[Any]] = lambda case_id: count_unread(  # noqa: E731
        organization_id=long.organization.id, case_id=case_id, sender_type="visitor", until=None
    )
    unread, buffers = cost(database, long, query(long.long))
    assert (unread.all, unread.remaining) == (0, 0)
    assert buffers < 10

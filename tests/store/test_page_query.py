"""The cost of a page, counted in rows and buffers: it depends on the contacts and the page, not on the cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg import sql

from cases_service.application import create_app
from cases_service.cases.filters import CHANNELS, NO_CHANNEL, PRIORITIES, STATUSES, Filters
from cases_service.cases.pagination import Cursor, Position, visitor_tag
from cases_service.cases.schemas import NESTED_ATTRIBUTES
from cases_service.cases.timestamps import to_microseconds
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.connection import Connection, query_count
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import Query, preamble
from cases_service.settings import Settings
from cases_service.store.cases import ORDERINGS, list_cases, summarize_cases
from cases_service.store.page_statements import PageShape, page_shapes, page_statement
from tests.factories import Organization, Visitor, get

PAGE_SIZE = 25
CASES = 20_000
NO_FILTERS = Filters()


@dataclass
class Heavy:
    """Visitors with the same number of cases over more and more contacts, and one with a page."""

    organization: Organization
    ordinary: Visitor
    by_contacts: dict[int, Visitor]
    lopsided: Visitor


@pytest.fixture(scope="module")
def heavy(session_connection: psycopg.Connection, box: SecretBox) -> Heavy:
    # Vacuum marks pages as visible to all only where the commits are on disk.
    session_connection.execute("set synchronous_commit = on")
    organization = Organization(session_connection, box)
    ordinary = organization.visitor(contacts=2)
    by_contacts = {contacts: organization.visitor(contacts=contacts) for contacts in (2, 20, 200)}
    fill(ordinary, PAGE_SIZE)
    for visitor in by_contacts.values():
        fill(visitor, CASES)
    lopsided = organization.visitor(contacts=20)
    fill(lopsided, CASES, lopsided.contact_ids[:1])
    for table in ("contacts", "cases"):
        session_connection.execute(f"vacuum analyze {table}")
    session_connection.execute("reset synchronous_commit")
    return Heavy(organization, ordinary, by_contacts, lopsided)


def fill(visitor: Visitor, number: int, contacts: list[UUID] | None = None) -> None:
    """Give a visitor cases that alternate between the contacts, several at each moment.

    Ten of 20,000 are open and have priority 5; none has a channel.
    """
    contacts = contacts or visitor.contact_ids
    visitor.organization.connection.execute(
        """
        insert into cases (organization_id, id, case_number, contact_id, owner_id, status, closed_at, priority,
            created_at, updated_at)
        select %(organization)s, gen_random_uuid(), %(visitor)s || '-' || n, (%(contacts)s::uuid[])[1 + n %% %(count)s],
            %(owner)s, case when n %% 2000 = 7 then 'Open' else 'Closed' end,
            case when n %% 2000 = 7 then null else '2020-01-01'::timestamptz end,
            case when n %% 2000 = 7 then 5 else 3 end,
            '2020-01-01'::timestamptz + (n / 5) * interval '1 s',
            '2024-01-01'::timestamptz - (n / 7) * interval '1 s'
        from generate_series(1, %(number)s) n
        """,
        {
            "organization": visitor.organization.id,
            "visitor": str(visitor.id),
            "contacts": contacts,
            "count": len(contacts),
            "owner": visitor.organization.user_id,
            "number": number,
        },
    )


def cursors(visitor: Visitor) -> list[Cursor | None]:
    """Return the first page, one in the middle and ones at the ends, in both directions."""
    tag = visitor_tag(visitor.id)
    moments = (0, 1577836800_000000 + 2000_000000, 4000000000_000000)
    return [None, *(Cursor(Position(m, UUID(int=0)), backward, tag) for m in moments for backward in (False, True))]


def explained(connection: Connection, organization_id: UUID, query: Query[Any]) -> tuple[Any, dict[str, Any]]:
    """Return the answer, and the very plan that was prepared for it."""
    (answer,) = connection.ask(organization_id, query)
    statement = query.statement
    explain = sql.SQL("explain (analyze, buffers, timing off, format json) execute {}({})").format(
        sql.Identifier(statement.name.decode()),
        sql.SQL(", ").join(sql.Literal(query.parameters[name]) for name in statement.parameters),
    )
    # Row security shows an EXPLAIN no more than the statement itself.
    with connection.transaction():
        connection.execute(preamble(organization_id)[-1])
        row = connection.execute(explain).fetchone()
    assert row
    return answer, row[0][0]["Plan"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def cost(
    database: Database,
    visitor: Visitor,
    ordering: str,
    cursor: Cursor | None,
    filters: Filters = NO_FILTERS,
    **shown: Any,
) -> tuple[int, int]:
    """Return the rows that a page's plan reads from tables and indexes, and the buffers it touches."""

    query = list_cases(
        organization_id=visitor.organization.id,
        external_id=visitor.external_id,
        ordering=ordering,
        filters=filters,
        cursor=cursor,
        page_size=PAGE_SIZE,
        **{"fields": None, **shown},
    )
    page, plan = database.read(lambda connection: explained(connection, visitor.organization.id, query))
    assert plan["Actual Rows"] >= len(page.rows)
    return read_by(plan)


def read_by(plan: dict[str, Any]) -> tuple[int, int]:
    """Return the rows that a plan reads, by nothing but look-ups in indexes, and the buffers that it touches."""
    scans = [node for node in nodes(plan) if "Relation Name" in node]
    assert all(node["Node Type"] in ("Index Scan", "Index Only Scan") for node in scans)
    passed = sum(node["Actual Rows"] * node["Actual Loops"] for node in scans)
    discarded = sum(node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in scans)
    rows = passed + discarded
    return rows, buffers_of(plan)


def buffers_of(plan: dict[str, Any]) -> int:
    """Return the buffers that a plan touches."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def assert_bounded(rows: int, buffers: int, *, contacts: int, streams: int, joins: int = 5) -> None:
    """Hold a page to its contacts, to an index descent for each stream ahead and behind, and to its own size."""
    page = PAGE_SIZE + 1
    # A share of each stream, one key behind, what the streams that gave their share hold behind it; then the cases,
    # with what they refer to. The key beyond the page is not joined.
    assert rows <= contacts + (streams + page) + streams + 2 * page + (1 + joins) * PAGE_SIZE
    # An index descent is a handful of buffers, and a row that was changed lately one more.
    assert buffers <= 2 * contacts + 10 * streams + 40 * page


@pytest.mark.parametrize("ordering", ORDERINGS)
@pytest.mark.parametrize("contacts", [2, 20, 200])
def test_rows_and_buffers_are_bounded_by_contacts_and_page(
    database: Database, heavy: Heavy, contacts: int, ordering: str
) -> None:
    visitor = heavy.by_contacts[contacts]
    for cursor in cursors(visitor):
        assert_bounded(*cost(database, visitor, ordering, cursor), contacts=contacts, streams=contacts)


@pytest.mark.parametrize(
    ("shown", "joins"),
    [
        ({"whole": False}, 5),
        ({"fields": frozenset({"id"})}, 0),
        *(({"fields": frozenset({name})}, 1) for name in NESTED_ATTRIBUTES),
        ({"fields": frozenset(NESTED_ATTRIBUTES)}, 5),
    ],
)
def test_a_page_looks_up_what_it_shows_and_nothing_else(
    database: Database, heavy: Heavy, shown: dict[str, Any], joins: int
) -> None:
    visitor = heavy.by_contacts[20]
    for ordering in ORDERINGS:
        for cursor in cursors(visitor):
            rows, buffers = cost(database, visitor, ordering, cursor, **shown)
            assert_bounded(rows, buffers, contacts=20, streams=20, joins=joins)


COMMON = Filters(statuses=frozenset({"Closed"}), priorities=frozenset({3}), channels=frozenset({NO_CHANNEL}))
SHAPES = [shape for shape in page_shapes() if shape.versions]


@pytest.mark.parametrize("shape", SHAPES, ids=[page_statement(shape).name.decode() for shape in SHAPES])
def test_every_shape_of_the_statement_is_bounded(database: Database, heavy: Heavy, shape: PageShape) -> None:
    """In the middle of the cases, where all streams give keys ahead and behind."""
    visitor = heavy.by_contacts[20]
    middle = "2020-01-01 00:33:20+00" if shape.column == "created_at" else "2023-12-31 23:33:20+00"
    ends = ("infinity", "-infinity") if shape.ascending else ("-infinity", "infinity")
    parameters = {
        "organization_id": visitor.organization.id,
        "external_id": visitor.external_id,
        "row_limit": PAGE_SIZE + 1,
        "after": middle,
        "after_id": UUID(int=2**127),
        "furthest": ends[0],
        "rearmost": ends[1],
        **COMMON.parameters(),
    }
    query = Query(page_statement(shape), parameters, lambda result: len(result.rows))
    rows, plan = database.read(lambda connection: explained(connection, visitor.organization.id, query))
    assert rows == PAGE_SIZE
    looked_at, buffers = read_by(plan)
    # Where the index is not the whole filter, each key's case is looked at.
    keys = 2 * 20 + 3 * (PAGE_SIZE + 1) if shape.others else 0
    assert_bounded(looked_at - keys, buffers - 4 * keys, contacts=20, streams=20)


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_contact_that_has_all_the_cases_costs_no_more(database: Database, heavy: Heavy, ordering: str) -> None:
    for cursor in cursors(heavy.lopsided):
        assert_bounded(*cost(database, heavy.lopsided, ordering, cursor), contacts=20, streams=20)


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_heavy_visitor_of_two_contacts_reads_hardly_more_than_an_ordinary_one(
    database: Database, heavy: Heavy, ordering: str
) -> None:
    ordinary = cost(database, heavy.ordinary, ordering, None)
    for cursor in cursors(heavy.by_contacts[2]):
        rows, buffers = cost(database, heavy.by_contacts[2], ordering, cursor)
        assert rows <= 1.5 * ordinary[0]
        assert buffers <= 1.5 * ordinary[1]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_whether_anything_lies_behind_is_asked_of_the_contact_of_the_cursor_first(
    database: Database, heavy: Heavy, connection: psycopg.Connection, ordering: str
) -> None:
    """Back from the last case of all, nothing but that case lies behind: at one of 200 contacts."""
    visitor, column = heavy.by_contacts[200], ordering.removeprefix("-")
    last = connection.execute(
        sql.SQL(
            """
            select (extract(epoch from {column}) * 1000000)::bigint, id
            from cases
            where contact_id = any(%s)
            order by {column} {direction}, id {direction}
            limit 1
            """
        ).format(column=sql.Identifier(column), direction=sql.SQL("asc" if ordering[0] == "-" else "desc")),
        [visitor.contact_ids],
    ).fetchone()
    assert last
    end = Cursor(Position(*last), backward=True, visitor_tag=visitor_tag(visitor.id))
    at_the_start, at_the_end = (cost(database, visitor, ordering, cursor)[1] for cursor in (None, end))
    # A look-up of a case by its id, and one of what is behind; a page may touch some buffers more than another.
    assert at_the_end <= at_the_start + 40


# Each single filter in the orderings where an index gives it, with the number of look-ups it takes for a contact.
FLAT = [
    *((Filters(statuses=frozenset({status})), 1, ORDERINGS) for status in STATUSES),
    (Filters(statuses=frozenset({"Pending", "In Progress"})), 2, ORDERINGS),
    (Filters(is_closed=True), 1, ORDERINGS),
    (Filters(is_closed=False), 3, ORDERINGS),
    *((Filters(priorities=frozenset({priority})), 1, ORDERINGS) for priority in PRIORITIES),
    (Filters(priorities=frozenset({1, 2, 4, 5})), 4, ORDERINGS),
    # No case has one of the two.
    (Filters(priorities=frozenset({3, 4})), 2, ORDERINGS),
    *((Filters(channels=frozenset({channel})), 1, ORDERINGS) for channel in CHANNELS),
    (Filters(channels=frozenset({"email", "whatsapp", "webchat"})), 3, ORDERINGS),
    (Filters(created_since=to_microseconds("2020-01-01T01:05:00Z")), 1, ORDERINGS[:2]),
    (Filters(created_until=to_microseconds("2020-01-01T00:00:05Z")), 1, ORDERINGS[:2]),
    (Filters(created_since=to_microseconds("2030-01-01T00:00:00Z")), 1, ORDERINGS[:2]),
    (Filters(updated_since=to_microseconds("2023-12-31T23:59:50Z")), 1, ORDERINGS[2:]),
    (Filters(updated_until=to_microseconds("2023-12-31T23:20:00Z")), 1, ORDERINGS[2:]),
    (Filters(updated_until=to_microseconds("2010-01-01T00:00:00Z")), 1, ORDERINGS[2:]),
    # With a range of the column that is ordered by.
    (Filters(is_closed=False, created_since=to_microseconds("2020-01-01T00:30:00Z")), 3, ORDERINGS[:2]),
    (Filters(priorities=frozenset({3}), updated_until=to_microseconds("2023-12-31T23:20:00Z")), 1, ORDERINGS[2:]),
]


@pytest.mark.parametrize(("filters", "values", "orderings"), FLAT)
@pytest.mark.parametrize("contacts", [2, 20, 200])
def test_a_filter_with_an_index_costs_contacts_and_page_too(
    database: Database, heavy: Heavy, contacts: int, filters: Filters, values: int, orderings: tuple[str, ...]
) -> None:
    visitor = heavy.by_contacts[contacts]
    for ordering in orderings:
        for cursor in cursors(visitor):
            rows, buffers = cost(database, visitor, ordering, cursor, filters)
            assert_bounded(rows, buffers, contacts=contacts, streams=contacts * values)


@pytest.mark.parametrize(
    ("others", "column", "index"),
    [
        ({}, "created_at", None),
        ({"created_since": 0, "created_until": 1}, "created_at", None),
        ({"updated_since": 0}, "created_at", "status"),
        ({"is_closed": True, "priorities": frozenset({5})}, "created_at", "priority"),
        ({"is_closed": False, "priorities": frozenset({5})}, "created_at", "status"),
        ({"priorities": frozenset({1, 2}), "channels": frozenset({"email"})}, "created_at", "channel"),
        ({"statuses": frozenset(STATUSES), "channels": frozenset({"email", "null"})}, "updated_at", "channel"),
    ],
)
def test_of_several_filters_the_narrowest_chooses_the_index(
    others: dict[str, Any], column: str, index: str | None
) -> None:
    assert Filters(**others).index(column)[0] == index


@pytest.mark.parametrize(
    ("filters", "total"),
    [
        (NO_FILTERS, CASES),
        (Filters(statuses=frozenset({"Open"}), priorities=frozenset({5}), channels=frozenset({"null"})), 10),
        (Filters(created_since=to_microseconds("2020-01-01T00:00:00Z"), is_closed=True), CASES - 10),
    ],
)
@pytest.mark.parametrize("contacts", [2, 20, 200])
def test_a_summary_reads_its_cases_from_an_index(
    database: Database, heavy: Heavy, contacts: int, filters: Filters, total: int
) -> None:
    visitor = heavy.by_contacts[contacts]
    query = summarize_cases(organization_id=visitor.organization.id, external_id=visitor.external_id, filters=filters)
    summary, plan = database.read(lambda connection: explained(connection, visitor.organization.id, query))
    assert summary["total"] == total
    (scan,) = [node for node in nodes(plan) if node.get("Relation Name") == "cases"]
    assert scan["Node Type"] == "Index Only Scan"
    # More than thirty entries are in a buffer, behind a descent for each contact.
    assert buffers_of(plan) <= CASES / 30 + 10 * contacts


def test_a_request_is_two_statements(app: Any, heavy: Heavy) -> None:
    client = app.test_client()
    visitor = heavy.by_contacts[20]
    first = get(client, heavy.organization, visitor.path).get_json()
    urls = (visitor.path, first["next"], f"{visitor.path}/{first['results'][0]['id']}", f"{visitor.path}/x")
    for url in urls:
        get(client, heavy.organization, url)
        assert query_count.value == 2


def test_a_request_is_one_round_trip(settings: Settings, heavy: Heavy, tmp_path: Any) -> None:
    """Counted by libpq's own trace: each Sync that is sent asks the server for an answer."""
    app = create_app(msgspec.structs.replace(settings, pool_size=1))
    database: Database = app.extensions["cases_service"].database
    client = app.test_client()
    path = heavy.ordinary.path
    get(client, heavy.organization, path)
    with (tmp_path / "trace").open("w") as trace:
        database.read(lambda connection: connection.pgconn.trace(trace.fileno()))
        assert get(client, heavy.organization, path).status_code == 200
        database.read(lambda connection: connection.pgconn.untrace())
    sent = [line.split("\t") for line in (tmp_path / "trace").read_text().splitlines()]
    assert sum(1 for line in sent if line[1] == "F" and line[3].startswith("Sync")) == 1
    database.close()

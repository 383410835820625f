"""On Citus: the call that the node of an organization answers says what the statements themselves say."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from cases_service.cases.filters import Filters
from cases_service.cases.organization_filters import OrganizationFilters
from cases_service.database import session_settings
from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.node_call import TABLES, CallingExchange, combined
from cases_service.database.nodes import DatabaseOfNodes
from cases_service.database.pipeline import Exchange, Query, Result
from cases_service.database.statements import Statement, statements
from cases_service.problems import TimeoutProblemError
from cases_service.settings import Settings
from cases_service.store import cases
from tests import citus
from tests.factories import LONG_AGO, Organization
from tests.statements import Statement as ReadStatement
from tests.statements import rendered_statements, statements_of_requests

on_citus = pytest.mark.skipif(not citus.IS_USED, reason=citus.SKIP_REASON)

AT_ONCE = 8
FUNCTION = "ask_organization(uuid, boolean, text, text, text[], text[])"
KEPT = 100
READ_BESIDES = ("conversations", "events", "import_runs")
AWKWARD = ["", "NULL", 'a "quoted" \\ backslash', "{a,b}", "(1,2)", "Ünï\u2028😀", "%1$s $1 %s", "line\nbreak\ttab"]


def test_every_table_of_a_request_has_its_shard_in_the_statement() -> None:
    asked_for = {f"{subject}.{name}": text for subject in READ_BESIDES for name, text in statements(subject).items()}
    for name, text in (asked_for | statements_of_requests()).items():
        if "#" in name or not text.lstrip().startswith(("select", "with")):
            continue
        statement = Statement(name.encode(), text.replace("%(", "$1(").encode(), ())
        found = combined((statement,), ((False,),)).tables
        relations = set(ReadStatement(text, dict.fromkeys(TABLES, "organization_id")).relations)
        assert set(filter(None, found.strip("{}").split(","))) == relations, name


def test_statements_have_their_parameters_one_after_the_other() -> None:
    one, other = (Statement(b"", b"select $1, $2 from cases c where '%' = $1", ("a", "b")) for _ in range(2))
    text = combined((one, other), ((False, True), (False, True))).text
    assert text.count("from %1$s c where '%%' = $1\n") == text.count("select $3, $4 from %1$s c where '%%' = $3\n") == 1


@pytest.mark.skipif(citus.IS_USED, reason="the server has nodes")
def test_a_server_without_nodes_is_asked_itself(settings: Settings) -> None:
    database = DatabaseOfNodes(settings.require_database_url(), settings)
    database.open()
    for _ in range(2):
        assert database.ask(uuid4(), asked("select 1")) == [(1,)]
    database.close()


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.require_database_url(), msgspec.structs.replace(settings, pool_size=1))
    database.open()
    yield database
    database.close()


@pytest.fixture
def of_nodes(settings: Settings) -> Iterator[DatabaseOfNodes]:
    database = DatabaseOfNodes(settings.require_database_url(), msgspec.structs.replace(settings, pool_size=1))
    database.open()
    yield database
    database.close()


@pytest.fixture
def awkward(organization: Organization) -> tuple[Organization, str, list[UUID]]:
    """An organization with a visitor whose cases have all kinds of values, and their ids."""
    visitor = organization.visitor(contacts=3)
    stage = organization.stage(name=AWKWARD[2])
    users = [organization.user(first_name=text, email=text, alias=None) for text in AWKWARD]
    ids = [
        organization.case(
            visitor.contact_ids[number % 3],
            subject=text,
            description=text * number,
            status=("Open", "Closed", "Pending")[number % 3],
            owner_id=users[number],
            created_by_user_id=users[-number] if number % 2 else None,
            case_funnel_stage_id=stage if number % 2 else None,
            is_waiting=number % 2 == 0,
            unread_message_count=number,
        )
        for number, text in enumerate(AWKWARD)
    ]
    return organization, visitor.external_id, ids


def everything(result: Result) -> Any:
    described = result.pgresult
    return [(described.fname(place), described.ftype(place)) for place in range(described.nfields)], result.rows


def in_both_ways(database: Database, organization_id: UUID, queries: list[Query[Any]]) -> tuple[Any, Any]:
    """Return what one call says, and what the statements themselves say."""

    def ask(connection: Connection) -> tuple[Any, Any]:
        exchange = connection.exchange
        assert isinstance(exchange, CallingExchange)
        called = exchange.ask(organization_id, queries)
        assert exchange._calls
        return called, Exchange.ask(exchange, organization_id, queries)

    return database.read(ask)


@on_citus
class TestAnswers:
    def test_every_statement_says_the_same_in_both_ways(
        self, database: Database, awkward: tuple[Organization, str, list[UUID]]
    ) -> None:
        organization, external_id, ids = awkward
        chosen = rendered_statements()
        seen = 0
        for place in range(0, len(chosen), AT_ONCE):
            queries = [
                Query(one, parameters_of(one, organization.id, external_id, ids), everything)
                for one in chosen[place : place + AT_ONCE]
            ]
            called, itself = in_both_ways(database, organization.id, queries)
            assert called == itself
            seen += sum(len(rows) for _, rows in called)
        assert seen > 2 * len(chosen)

    def test_every_statement_says_the_same_of_the_shards_own_tables(
        self, database: Database, of_nodes: DatabaseOfNodes, awkward: tuple[Organization, str, list[UUID]]
    ) -> None:
        organization, external_id, ids = awkward
        queries = [
            Query(one, parameters_of(one, organization.id, external_id, ids), everything)
            for one in rendered_statements()
            if b"#" not in one.name
        ]
        hashes = organization.connection.execute(
            "select token_hash from api_tokens where organization_id = %s", [organization.id]
        ).fetchall()
        for (one,) in hashes:
            access = cases.get_access(organization_id=organization.id, token_hash=one)
            queries.append(Query(access.statement, access.parameters, everything))
        for place in range(0, len(queries), AT_ONCE):
            some = queries[place : place + AT_ONCE]
            assert of_nodes.ask_all(organization.id, *some) == database.ask_all(organization.id, *some)
        assert len(of_nodes._nodes) == 1
        assert of_nodes._left_out == {}

    def test_what_a_token_opens_and_the_summary_are_the_same(
        self, database: Database, awkward: tuple[Organization, str, list[UUID]]
    ) -> None:
        organization, external_id, _ = awkward
        organization.public_key("RS256", "-----BEGIN")
        hashes = organization.connection.execute(
            "select token_hash from api_tokens where organization_id = %s", [organization.id]
        ).fetchall()
        queries: list[Query[Any]] = [
            cases.get_access(organization_id=organization.id, token_hash=one) for (one,) in hashes
        ]
        queries += [
            cases.get_access(organization_id=organization.id, token_hash=b"\0\\'\xff"),
            cases.get_visitor(organization_id=organization.id, external_id=external_id),
            cases.summarize_cases(organization_id=organization.id, external_id=external_id, filters=Filters()),
            cases.summarize_cases(organization_id=organization.id, external_id="nobody's \\", filters=Filters()),
        ]
        for readers in (queries, [Query(one.statement, one.parameters, everything) for one in queries]):
            called, itself = in_both_ways(database, organization.id, readers)
            assert called == itself
        assert len(called[0][1]) == 2

    def test_values_arrive_as_they_were_given(self, database: Database) -> None:
        given = {"text": "it's a \\ é '$1' %s", "number": 2**40, "flag": True, "none": None, "list": AWKWARD}
        text = b"select $1::text, $2::bigint, $3::bool, $4::text, $5::text[], not $3, null::bool"
        query = Query(Statement(b"values", text, tuple(given)), given, lambda result: result.rows)
        expected = [(*given.values(), False, None)]
        assert in_both_ways(database, uuid4(), [query, query]) == ([expected, expected], [expected, expected])

    def test_a_statement_without_parameters_or_rows(self, database: Database) -> None:
        queries = [Query(Statement(text, text, ()), {}, everything) for text in (b"select 1", b"select 2 where false")]
        called, itself = in_both_ways(database, uuid4(), queries)
        assert called == itself
        assert [rows for _, rows in called] == [[(1,)], []]


def parameters_of(statement: Statement, organization_id: UUID, external_id: str, ids: list[UUID]) -> dict[str, Any]:
    """Return parameters of a page that begins in the middle of the cases, or of a case."""
    ends = ("-infinity", "infinity")
    if b"descending" in statement.name:
        ends = ends[::-1]
    given = {
        **OrganizationFilters(common=Filters()).parameters(),
        **Filters().parameters(),
        "organization_id": organization_id,
        "external_id": external_id,
        "case_id": ids[3],
        "case_number": "none",
        "row_limit": 5,
        "after": LONG_AGO.isoformat(),
        "after_id": sorted(ids)[3],
        "rearmost": ends[0],
        "furthest": ends[1],
        "look_behind": True,
    }
    return {name: given[name] for name in statement.parameters}


def asked(text: str, **parameters: Any) -> Query[Any]:
    statement = Statement(text.encode(), text.encode(), tuple(parameters))
    return Query(statement, parameters, lambda result: result.rows)


@on_citus
class TestTheCall:
    def test_a_request_for_one_organization_with_the_setting_of_another_sees_nothing(
        self, database: Database, of_nodes: DatabaseOfNodes, organization: Organization, box: Any
    ) -> None:
        visitor = organization.visitor()
        visitor.cases(3)
        query = cases.summarize_cases(
            organization_id=organization.id, external_id=visitor.external_id, filters=Filters()
        )
        # Another one on the same shard: there is only the policy that hides these rows.
        other = neighbour_of(organization, box)
        for one in (database, of_nodes):
            found = one.ask(organization.id, query)
            assert found is not None
            assert found["total"] == 3
            assert one.ask(other.id, query) is None

    def test_no_row_of_another_organization_is_seen_on_its_shard(
        self, database: Database, of_nodes: DatabaseOfNodes, organization: Organization, box: Any
    ) -> None:
        other = neighbour_of(organization, box)
        for one in (database, of_nodes):
            for table in TABLES:
                rows = one.ask(other.id, asked(f"select distinct c.organization_id from {table} c"))
                assert {UUID(name) for (name,) in rows} <= {other.id}, table
            assert one.ask(other.id, asked("select count(*) from users u")) == [(1,)]

    def test_notes_are_seen_by_those_who_may(self, database: Database) -> None:
        query = asked("select coalesce(current_setting('cases.private_notes', true), '')")
        assert database.ask(uuid4(), query) == [("",)]
        assert database.ask(uuid4(), query, notes=True) == [("shown",)]
        assert database.ask(uuid4(), query) == [("",)]

    def test_nothing_is_written(self, database: Database) -> None:
        assert database.ask(uuid4(), asked("select current_setting('transaction_read_only')")) == [("on",)]

    def test_its_session_is_as_the_statements_need_it(self, connection: psycopg.Connection) -> None:
        row = connection.execute("select proconfig from pg_proc where proname = 'ask_organization'").fetchone()
        assert row is not None
        found = dict(setting.split("=", 1) for setting in row[0])
        wanted = session_settings.of_service(Settings())
        plans = {name: value for name, value in wanted.items() if name.startswith("enable_") or name == "jit"}
        form = ("timezone", "datestyle", "intervalstyle", "extra_float_digits", "bytea_output", "row_security")
        asked_for = {**plans, **{name: wanted[name] for name in form}, "plan_cache_mode": "force_generic_plan"}
        lower = {name.lower(): value for name, value in found.items()}
        assert asked_for.items() <= lower.items()
        assert set(lower) - set(asked_for) == {"search_path"}

    def test_a_statement_that_takes_too_long_is_a_timeout_and_no_more(self, settings: Settings) -> None:
        changed = msgspec.structs.replace(settings, pool_size=1, statement_timeout=0.5)
        database = Database(settings.require_database_url(), changed)
        database.open()
        with pytest.raises(TimeoutProblemError):
            database.ask(uuid4(), asked("select pg_sleep(5)::text"))
        assert database.ask(uuid4(), asked("select 1")) == [(1,)]
        database.close()

    def test_a_session_between_nodes_keeps_so_many_statements(self, database: Database) -> None:
        someone = uuid4()
        for number in range(KEPT + 20):
            assert database.ask(someone, asked(f"select {number}")) == [(number,)]
        count = asked("select count(*) from pg_prepared_statements")
        assert database.ask(someone, count) == [(KEPT,)]
        assert database.ask(someone, asked("select 0")) == [(0,)]

    def test_a_statement_is_prepared_once(self, database: Database) -> None:
        someone = uuid4()
        when = asked("select prepare_time from pg_prepared_statements order by prepare_time desc limit 1")
        assert database.ask(someone, when) == database.ask(someone, when)

    @pytest.mark.parametrize("prepares", [True, False])
    def test_where_the_function_is_missing_the_statements_are_asked_themselves(
        self, settings: Settings, connection: psycopg.Connection, organization: Organization, prepares: bool
    ) -> None:
        visitor = organization.visitor()
        changed = msgspec.structs.replace(settings, pool_size=1, prepared_statements=prepares)
        query = cases.get_visitor(organization_id=organization.id, external_id=visitor.external_id)
        before, after = (Database(settings.require_database_url(), changed) for _ in range(2))
        before.open()
        expected = before.ask(organization.id, query)
        assert expected is not None
        connection.execute(f"alter function {FUNCTION} rename to unknown".encode())
        try:
            assert before.ask(organization.id, query) == expected
            after.open()
            assert after.ask(organization.id, query) == expected
            assert after.read(lambda one: type(one.exchange)) is Exchange
        finally:
            renamed = FUNCTION.replace("ask_organization", "unknown")
            connection.execute(f"alter function {renamed} rename to ask_organization".encode())
            before.close()
            after.close()

    def test_where_the_node_has_no_shard_the_statements_are_asked_themselves(
        self, database: Database, connection: psycopg.Connection, database_url: str, organization: Organization
    ) -> None:
        visitor = organization.visitor()
        query = cases.get_visitor(organization_id=organization.id, external_id=visitor.external_id)
        expected = database.ask(organization.id, query)
        assert expected is not None
        body = "$$ begin raise undefined_table; end $$"
        names = "organization_id uuid, notes boolean, name text, statement text, tables text[], parameters text[]"
        connection.execute(
            f"create or replace function ask_organization({names}) returns bytea[] language plpgsql as {body}".encode()
        )
        try:
            assert database.ask(organization.id, query) == expected
        finally:
            citus.distribute(database_url)
        assert database.ask(organization.id, query) == expected


def neighbour_of(organization: Organization, box: Any) -> Organization:
    """Make another organization on the same shard."""
    shard: Callable[[UUID], Any] = lambda one: organization.connection.execute(  # noqa: E731
        "select get_shard_id_for_distribution_column('organizations', %s)", [one]
    ).fetchone()
    while True:
        other = Organization(organization.connection, box)
        if shard(other.id) == shard(organization.id):
            return other

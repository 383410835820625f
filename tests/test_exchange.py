"""Statements and their transaction in one round trip: results, and the state after failures."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from cases_service.database.connection import Connection
from cases_service.database.connection_pool import Database
from cases_service.database.pipeline import MAXIMUM_PREPARED, Query
from cases_service.database.statements import Statement
from cases_service.errors import TimeoutProblemError, UnavailableError
from cases_service.settings import Settings

SOMEONE = UUID("9b0e6d6a-6a0f-4d55-8a3c-0b1a5c1e2f30")
WHO = "select current_setting('cases.organization_id', true)"


@pytest.fixture(params=[True, False], ids=["prepared", "unprepared"])
def database(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Database]:
    changed = msgspec.structs.replace(settings, pool_size=1, statement_timeout=0.5, prepared_statements=request.param)
    database = Database(changed.require_database_url(), changed)
    database.open()
    yield database
    database.close()


def query(text: str, /, **parameters: Any) -> Query[Any]:
    """Return a query for the first row of a statement with the parameters $1, $2, …, in this order."""
    statement = Statement(uuid4().hex.encode(), text.encode(), tuple(parameters))
    return Query(statement, parameters, lambda result: result.rows[0] if result.rows else None)


def test_values_arrive_as_they_were_given(database: Database) -> None:
    given = {
        "text": "it's a \\ \u00e9 'test'",
        "number": 2**40,
        "flag": True,
        "none": None,
        "id": SOMEONE,
        "bytes": b"\0\\'",
        "list": ["a,b", '"', ""],
    }
    asked = query("select $1::text, $2::bigint, $3::bool, $4::text, $5::uuid, $6::bytea, $7::text[]", **given)
    assert database.ask(SOMEONE, asked) == (*list(given.values())[:4], str(SOMEONE), *list(given.values())[5:])


def test_statements_of_one_exchange_see_one_organization_and_one_moment(database: Database) -> None:
    first, second = database.ask_both(SOMEONE, query(f"{WHO}, now()"), query(f"{WHO}, now()"))
    assert first == second
    assert first[0] == str(SOMEONE)


ISOLATION = "select current_setting('transaction_isolation')"


@pytest.mark.parametrize("is_citus", [False, True], ids=["implicit", "explicit"])
def test_a_read_is_a_transaction_that_sees_one_state(database: Database, is_citus: bool) -> None:
    def work(connection: Connection) -> list[Any]:
        connection.exchange._is_citus = is_citus
        return connection.ask(SOMEONE, query(ISOLATION), query(ISOLATION))

    assert database.read(work) == [("repeatable read",)] * 2


def test_a_write_sees_what_others_have_just_committed(database: Database) -> None:
    """It would fail otherwise, where two workers note the use of one token."""
    found: list[Any] = []
    database.write(lambda connection: found.extend(connection.ask(SOMEONE, query(ISOLATION))))
    assert found == [("read committed",)]


def test_nothing_of_the_organization_is_left_behind(database: Database) -> None:
    database.ask(SOMEONE, query("select 1"))
    assert database.read(lambda connection: connection.execute(WHO).fetchone()) in ((None,), ("",))
    other = uuid4()
    assert database.ask(other, query(WHO)) == (str(other),)


@pytest.mark.parametrize("at", [0, 1])
def test_after_a_failed_statement_the_connection_goes_on(database: Database, at: int) -> None:
    good, bad = query("select 1"), query("select 1 / $1::int", divisor=0)
    pid = database.ask(SOMEONE, query("select pg_backend_pid()"))
    pair = [good, good]
    pair[at] = bad
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            database.ask_both(SOMEONE, pair[0], pair[1])
    assert database.ask(SOMEONE, good) == (1,)
    assert database.ask(SOMEONE, query("select pg_backend_pid()")) == pid


def test_a_statement_is_prepared_once(settings: Settings) -> None:
    database = Database(settings.require_database_url(), msgspec.structs.replace(settings, pool_size=1))
    database.open()
    asked = query("select $1::int", number=1)
    for _ in range(3):
        database.ask_both(SOMEONE, asked, asked)
    name = asked.statement.name.decode()
    count: Any = "select count(*) from pg_prepared_statements where name = %s"
    assert database.read(lambda connection: connection.execute(count, [name]).fetchone()) == (1,)
    database.close()


def test_a_slow_statement_is_a_timeout_and_no_more(database: Database) -> None:
    pid = database.ask(SOMEONE, query("select pg_backend_pid()"))
    with pytest.raises(TimeoutProblemError):
        database.ask_both(SOMEONE, query("select 1"), query("select pg_sleep(5)"))
    assert database.ask(SOMEONE, query("select pg_backend_pid()")) == pid


def test_a_connection_that_is_cut_in_the_middle_is_replaced(database: Database, connection: psycopg.Connection) -> None:
    cut = database.ask(SOMEONE, query("select pg_backend_pid()"))
    tried: list[Connection] = []

    def work(given: Connection) -> Any:
        if not tried:
            connection.execute("select pg_terminate_backend(%s, 5000)", cut)
        tried.append(given)
        return given.ask(SOMEONE, query("select pg_backend_pid()"))[0]

    assert database.read(work) != cut
    assert len(tried) == 2


def test_one_that_is_cut_each_time_is_unavailable(database: Database) -> None:
    with pytest.raises(UnavailableError):
        database.ask(SOMEONE, query("select pg_terminate_backend(pg_backend_pid())"))
    assert database.ask(SOMEONE, query("select 1")) == (1,)


def test_a_statement_that_a_pooler_has_lost_is_prepared_again(settings: Settings) -> None:
    database = Database(settings.require_database_url(), msgspec.structs.replace(settings, pool_size=1))
    database.open()
    asked = query("select $1::int", number=1)
    assert database.ask(SOMEONE, asked) == (1,)
    database.read(lambda connection: connection.execute("deallocate all", prepare=False))
    assert database.ask(SOMEONE, asked) == (1,)
    database.close()


def test_statements_that_were_used_the_longest_ago_are_closed(settings: Settings) -> None:
    database = Database(settings.require_database_url(), msgspec.structs.replace(settings, pool_size=1))
    database.open()
    kept, *others = (query(f"select {number}") for number in range(MAXIMUM_PREPARED + 20))

    def ask_everything(connection: Connection) -> set[str]:
        for other in (*others, others[0]):
            assert connection.ask(SOMEONE, kept, other)[0] == (0,)
        rows = connection.execute("select name from pg_prepared_statements", prepare=False)
        return {name for (name,) in rows}

    names = database.read(ask_everything)
    used = [one.statement.name.decode() for one in (kept, *others)]
    # Besides these there is the one that names the organization.
    assert names.intersection(used) == {used[0], used[1], *used[23:]}
    assert len(names) == MAXIMUM_PREPARED
    database.close()


def test_a_long_answer_arrives_whole(database: Database) -> None:
    (text,) = database.ask(SOMEONE, query("select repeat($1, 3000000)", text="long"))
    assert text == "long" * 3_000_000


def test_a_long_parameter_is_sent_whole(database: Database) -> None:
    assert database.ask(SOMEONE, query("select length($1::text)", text="x" * 8_000_000)) == (8_000_000,)


def test_the_service_cannot_write(database: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        database.ask(SOMEONE, query("create table never (id int)"))
    assert database.ask(SOMEONE, query("select 1")) == (1,)

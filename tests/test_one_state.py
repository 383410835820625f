"""What a request judges and what it shows come from one state of the database, whatever is committed meanwhile."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask.testing import FlaskClient

from cases_service.application import Application
from cases_service.credentials.api_tokens import ApiToken
from cases_service.database.connection import Connection
from cases_service.database.pipeline import Query, preamble
from cases_service.database.statements import statements
from tests.factories import Organization, assert_problem
from tests.process.running import wait_for
from tests.swaps import Swaps

SWAPS = 500
CLIENTS = 8


class Exchanges:
    """The round trips of requests. Between two of them something may be made to happen."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.statements: list[int] = []
        self.after: dict[int, Callable[[], object]] = {}

    def begin(self, *, after: dict[int, Callable[[], object]] | None = None) -> None:
        """Count from now on, and run what is given behind the round trips of these numbers."""
        self.statements, self.after = [], after or {}

    def add(self, statements: int) -> None:
        self.statements.append(statements)
        self.after.pop(len(self.statements), lambda: None)()


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> Exchanges:
    found, ask = Exchanges(), Connection.ask

    def counted(connection: Connection, organization_id: UUID, *queries: Query[Any], notes: bool = False) -> list[Any]:
        answers = ask(connection, organization_id, *queries, notes=notes)
        # The uses of credentials are recorded by a thread of their own.
        if threading.get_ident() == found.thread:
            found.add(len(queries))
        return answers

    monkeypatch.setattr(Connection, "ask", counted)
    return found


@pytest.fixture
def swaps(organization: Organization) -> Swaps:
    return Swaps(organization)


@pytest.fixture
def other_connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url) as connection:
        yield connection


def test_the_second_statement_of_an_exchange_sees_what_the_first_one_saw(
    client: FlaskClient, swaps: Swaps, other_connection: psycopg.Connection, connection: psycopg.Connection
) -> None:
    """The page waits for a lock until the swap is committed, and shows what was there when the token was read."""
    assert swaps.ask(client, "one").status_code == 200
    shown = swaps.cases["one"]
    other_connection.execute("lock table cases in access exclusive mode")
    with ThreadPoolExecutor(1) as executor:
        waits = executor.submit(swaps.ask, client, "one")
        wait_for(lambda: connection.execute("select from pg_locks where not granted").fetchone() is not None)
        swaps.swap(other_connection)
        other_connection.commit()
        answer = waits.result()
    assert answer.json is not None
    assert [case["id"] for case in answer.json["results"]] == [shown]


def test_a_swap_behind_the_first_look_at_a_token_is_noticed(
    client: FlaskClient, swaps: Swaps, connection: psycopg.Connection, exchanges: Exchanges
) -> None:
    exchanges.begin(after={1: lambda: swaps.swap(connection)})
    assert_problem(swaps.ask(client, "one"), 400, "token_key_unknown")
    assert exchanges.statements == [1, 2]


def test_a_swap_before_the_second_question_of_a_poll_is_noticed(
    client: FlaskClient, swaps: Swaps, connection: psycopg.Connection, exchanges: Exchanges
) -> None:
    assert swaps.ask(client, "one").status_code == 200
    exchanges.begin(after={1: lambda: swaps.swap(connection)})
    assert_problem(swaps.ask(client, "one", if_none_match='"old"'), 400, "token_key_unknown")
    assert exchanges.statements == [2, 2]


def test_a_swap_behind_the_look_that_rate_limits_need_is_noticed(
    make_client: Callable[..., FlaskClient], swaps: Swaps, connection: psycopg.Connection, exchanges: Exchanges
) -> None:
    client = make_client(rate_limit_visitor="1000/minute")
    for _ in range(2):
        assert swaps.ask(client, "one").status_code == 200
    exchanges.begin(after={1: lambda: swaps.swap(connection)})
    assert_problem(swaps.ask(client, "one", epoch=-1), 400, "token_key_unknown")
    assert exchanges.statements == [1, 2]


def test_a_request_that_is_asked_again_counts_once_for_its_limits(
    make_client: Callable[..., FlaskClient], swaps: Swaps, connection: psycopg.Connection, exchanges: Exchanges
) -> None:
    client = make_client(rate_limit_visitor="1000/minute", rate_limit_token="1000/minute")
    exchanges.begin(after={1: swaps.organization.key})
    answer = swaps.ask(client, "one")
    assert (answer.status_code, answer.headers["RateLimit-Remaining"]) == (200, "999")
    assert exchanges.statements == [1, 2, 2]


def test_a_key_that_is_added_meanwhile_costs_a_round_trip_and_no_answer(
    client: FlaskClient, swaps: Swaps, exchanges: Exchanges
) -> None:
    exchanges.begin(after={1: swaps.organization.key})
    answer = swaps.ask(client, "one")
    assert answer.json is not None
    assert [case["id"] for case in answer.json["results"]] == [swaps.cases["one"]]
    assert exchanges.statements == [1, 2, 2]


def test_a_token_that_is_revoked_behind_the_first_look_opens_nothing(
    client: FlaskClient, swaps: Swaps, connection: psycopg.Connection, exchanges: Exchanges
) -> None:
    def revoke() -> None:
        connection.execute("update api_tokens set revoked_at = now() where id = %s", [swaps.organization.token_id])

    exchanges.begin(after={1: revoke})
    assert_problem(swaps.ask(client, "one"), 401, "api_token_invalid")


def test_where_keys_change_faster_than_they_can_be_read_the_service_is_unavailable(
    client: FlaskClient, swaps: Swaps, exchanges: Exchanges
) -> None:
    exchanges.begin(after=dict.fromkeys(range(1, 9), swaps.organization.key))
    assert_problem(swaps.ask(client, "one"), 503, "unavailable")
    assert len(exchanges.statements) <= 6


def test_a_key_that_is_retired_once_the_transaction_has_begun_is_not_live_in_it(
    swaps: Swaps, connection: psycopg.Connection, service_url: str
) -> None:
    """A transaction's now() is older than its snapshot, so that it cannot tell what is live there."""
    organization = swaps.organization
    token_hash = ApiToken.parse(organization.token).hash  # type: ignore[union-attr]
    parameters = {"organization_id": organization.id, "token_hash": token_hash}
    with psycopg.connect(service_url, autocommit=True) as reader:
        for command in preamble(organization.id):
            reader.execute(command)
        swaps.swap(connection)
        rows = reader.execute(statements("access")["get_access"], parameters).fetchall()
        reader.execute("rollback")
    assert [str(row[1]) for row in rows] == [str(swaps.kid)]


@pytest.mark.parametrize("after", ["", "/summary", "?fields=id", "/{case}"])
def test_a_known_token_takes_one_round_trip(
    client: FlaskClient, swaps: Swaps, exchanges: Exchanges, after: str
) -> None:
    assert swaps.ask(client, "one").status_code == 200
    exchanges.begin()
    assert swaps.ask(client, "one", after=after.format(case=swaps.cases["one"])).status_code == 200
    assert exchanges.statements == [2]


def test_a_poll_that_finds_nothing_new_takes_one_round_trip_and_another_one_two(
    client: FlaskClient, swaps: Swaps, exchanges: Exchanges
) -> None:
    etag = swaps.ask(client, "one").headers["ETag"]
    exchanges.begin()
    assert swaps.ask(client, "one", if_none_match=etag).status_code == 304
    assert exchanges.statements == [2]
    exchanges.begin()
    assert swaps.ask(client, "one", if_none_match='"old"').status_code == 200
    assert exchanges.statements == [2, 2]


def test_hundreds_of_swaps_under_requests_show_nobody_the_others_cases(
    app: Application, swaps: Swaps, connection: psycopg.Connection
) -> None:
    assert swaps.wrong_answers(app, connection, swaps=SWAPS, clients=CLIENTS) == []

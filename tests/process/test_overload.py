"""More requests than the connections can carry. What they carry is set by how long a statement sleeps, not by a CPU."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.embedded.server import join
from tests.factories import SECRET_KEY
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, stop
from tests.process.running import Answer, Service, read_answer, wait_for
from tests.process.traffic import Outcome
from tests.torture import times

CONNECTIONS = 2
SLEEP_SECONDS = 0.1
WAIT_SECONDS = 0.5
CAPACITY = CONNECTIONS / SLEEP_SECONDS
SECONDS = times(5, torture=60)
SIZES = {"CASES_WORKERS": "1", "CASES_THREADS": "8", "CASES_POOL_SIZE": str(CONNECTIONS)}

# Every read of a visitor sleeps first, except a superuser's.
SLOW = f"""
create role visitor_cases login;
grant pg_read_all_data to visitor_cases;
alter table visitors enable row level security;
create policy everything on visitors using (true);
create policy slowly on visitors as restrictive using (pg_sleep({SLEEP_SECONDS}) is not null);
"""


@pytest.fixture
def database(data_dir: Path) -> Iterator[str]:
    server = join(data_dir, settings=FAST)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(SLOW.encode())
    yield server.conninfo
    stop(server)


@pytest.fixture
def service(start: Callable[..., Service], database: str) -> Service:
    variables = {"CASES_POOL_TIMEOUT": str(WAIT_SECONDS), "CASES_SECRET_KEY": SECRET_KEY, **SIZES}
    service = start(*serve_arguments(), DATABASE_URL=make_conninfo(database, user="visitor_cases"), **variables)
    service.wait_until_ready()
    return service


def ask(service: Service, template: Template) -> tuple[Answer, float, float]:
    """Return an answer, and when it was asked for and came."""
    began = time.monotonic()
    with service.connect() as client:
        client.sendall(f"GET {template.path} HTTP/1.1\r\nHost: localhost\r\n{template.header}\r\n\r\n".encode())
        return read_answer(client), began, time.monotonic()


def best(service: Service, template: Template) -> float:
    """Return how many requests a second are answered where none has to wait for long."""
    until = time.monotonic() + 3

    def ask_again_and_again() -> int:
        number = 0
        while time.monotonic() < until:
            assert ask(service, template)[0].status == 200
            number += 1
        return number

    with ThreadPoolExecutor(CONNECTIONS + 1) as threads:
        return sum(future.result() for future in [threads.submit(ask_again_and_again) for _ in range(3)]) / 3


def test_five_times_what_it_can_carry_is_shed_and_the_rest_is_answered(
    service: Service, template: Template, record_property: Callable[[str, object], None]
) -> None:
    most = best(service, template)
    assert most > CAPACITY / 2
    with ThreadPoolExecutor(400) as threads:
        began = time.monotonic()
        futures: list[Future[tuple[Answer, float, float]]] = []
        while (now := time.monotonic() - began) < SECONDS:
            # As many as are due, however late this thread is.
            futures += [threads.submit(ask, service, template) for _ in range(int(now * 5 * CAPACITY) - len(futures))]
            time.sleep(0.01)
        ended = time.monotonic()
        answers = [future.result() for future in futures]
    assert [ask(service, template)[0].status for _ in range(10)] == [200] * 10, "it recovers at once"
    counted = Counter((answer.status, answer.json.get("code")) for answer, _, _ in answers)
    slowest = max(came - asked for _, asked, came in answers)
    outcome = Outcome(statuses=Counter(str(answer.status) for answer, _, _ in answers), slowest=slowest, tries=1)
    record_property("fault", {"fault": "five times the load"} | outcome.as_row())
    assert set(counted) == {(200, None), (503, "overloaded")}, counted
    assert all(answer.headers["retry-after"] for answer, _, _ in answers if answer.status == 503)
    in_time = sum(answer.status == 200 and came < ended for answer, _, came in answers)
    # A service that collapses carries next to nothing; a busy machine carries less than it did a moment ago.
    assert in_time / SECONDS >= 0.5 * most
    # It waits for a thread, and twice for its turn; a second is the machine's.
    assert slowest < 3 * WAIT_SECONDS + 2 * SLEEP_SECONDS + 1


@contextmanager
def locked(database: str) -> Iterator[None]:
    with psycopg.connect(database) as connection:
        connection.execute("lock table cases in access exclusive mode")
        yield


def test_while_every_connection_waits_the_process_says_that_it_lives_and_the_rest_is_shed(
    start: Callable[..., Service], database: str, template: Template
) -> None:
    # The lock goes only after all the answers have come, so none of them waited for it.
    variables = {"CASES_STATEMENT_TIMEOUT": "60", "CASES_GRACEFUL_TIMEOUT": "600", "CASES_SECRET_KEY": SECRET_KEY}
    service = start(*serve_arguments(), DATABASE_URL=database, CASES_POOL_TIMEOUT="0.5", **SIZES, **variables)
    service.wait_until_ready()
    with ThreadPoolExecutor(100) as threads:
        with locked(database):
            requests = [threads.submit(ask, service, template) for _ in range(100)]
            for _ in range(20):
                assert service.curl("/healthz").status == 200
            assert service.curl("/readyz").status == 200, "the database is there; who turns away helps nobody"
            wait_for(lambda: sum(request.done() for request in requests) == 100 - CONNECTIONS, story=service)
            shed = [request.result()[0] for request in requests if request.done()]
            assert {(answer.status, answer.json["code"]) for answer in shed} == {(503, "overloaded")}
        answers = Counter(request.result()[0].status for request in requests)
    assert answers == {200: CONNECTIONS, 503: 100 - CONNECTIONS}

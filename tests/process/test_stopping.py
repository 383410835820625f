"""How the service stops, and what its clients notice of it."""

import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.factories import Organization
from tests.process.conftest import serve_arguments
from tests.process.running import LOOPBACK, PATIENCE, Answer, Service, is_alive, read_answer, wait_for
from tests.torture import times

KILLS = times(2, torture=30)
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client(threading.Thread):
    """Asks again and again until it is refused, on one connection or on a new one each time."""

    def __init__(self, port: int, *, keeps: bool) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._keeps = keeps
        self._is_done = threading.Event()
        self.results: Counter[str] = Counter()

    def run(self) -> None:
        while not self._is_done.is_set():
            try:
                connection = socket.create_connection((LOOPBACK, self._port), timeout=60)
            except (ConnectionRefusedError, ConnectionResetError):
                # Reset, where the port was closed while the connection was made: nothing has been asked yet.
                return
            with connection:
                while self._ask(connection):
                    pass

    def _ask(self, connection: socket.socket) -> bool:
        try:
            connection.sendall(REQUEST)
            answer = read_answer(connection)
        except (OSError, EOFError) as error:
            self.results[repr(error)] += 1
            return False
        self.results[str(answer.status)] += 1
        return self._keeps and answer.headers["connection"] == "keep-alive"

    def stop(self) -> None:
        """Let it make no further connection, and wait for its last answer."""
        self._is_done.set()
        self.join(60)


def test_under_load_every_request_is_answered(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    clients = [Client(service.port, keeps=number % 2 == 0) for number in range(20)]
    for client in clients:
        client.start()
    time.sleep(1)
    assert service.end() == 0
    for client in clients:
        client.join(60)
    results = sum((client.results for client in clients), Counter())
    answered = results.pop("200")
    assert answered > 100
    # Between a worker's last look at the queue of connections and its end, a microsecond later, one can slip in.
    assert sum(results.values()) <= len(service.workers()), results


def test_a_request_that_has_begun_is_answered_whole(
    serve: Callable[..., Service], organization: Organization, database_url: str
) -> None:
    service = serve()
    service.wait_until_ready()
    visitor = organization.visitor()
    visitor.cases(3)
    header = f"Authorization: Token {organization.token}"
    answers: list[Answer] = []
    request = threading.Thread(target=lambda: answers.append(service.curl(visitor.path, "--header", header)))
    with psycopg.connect(database_url) as locked:
        locked.execute("lock table cases in access exclusive mode")
        request.start()
        wait_for(partial(is_somebody_waiting, database_url))
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert service.process.poll() is None
    request.join()
    assert answers[0].status == 200
    assert len(answers[0].json["results"]) == 3
    assert service.process.wait(PATIENCE) == 0


def is_somebody_waiting(database_url: str) -> bool:
    with psycopg.connect(database_url) as connection:
        waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return connection.execute(waiting).fetchone() is not None


def test_a_request_whose_headers_are_still_coming_is_answered(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    with service.connect() as client:
        client.sendall(REQUEST[:20])
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        client.sendall(REQUEST[20:])
        assert read_answer(client).status == 200
    assert service.process.wait(PATIENCE) == 0


def test_idle_connections_delay_the_stop_by_seconds_at_most(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    silent = [service.connect() for _ in range(5)]
    kept = [service.connect() for _ in range(5)]
    for client in kept:
        client.sendall(REQUEST)
        assert read_answer(client).headers["connection"] == "keep-alive"
    began = time.monotonic()
    assert service.end() == 0
    # An idle connection is kept for 75 seconds.
    assert time.monotonic() - began < 19
    for client in silent + kept:
        client.close()


def test_without_clients_it_stops_at_once_and_leaves_the_database(
    serve: Callable[..., Service], database_url: str
) -> None:
    name = f"stopping-{uuid4()}"
    service = serve(DATABASE_URL=make_conninfo(database_url, application_name=name))
    service.wait_until_ready()
    with psycopg.connect(database_url, autocommit=True) as connection:
        count = "select count(*) > 0 from pg_stat_activity where application_name = %s"
        assert connection.execute(count, [name]).fetchone() == (True,)
        began = time.monotonic()
        assert service.end() == 0
        # What a request may take would be thirty seconds.
        assert time.monotonic() - began < 15
        wait_for(lambda: connection.execute(count, [name]).fetchone() == (False,), seconds=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_other_signals_end_it_as_well_and_without_a_traceback(
    serve: Callable[..., Service], number: signal.Signals
) -> None:
    service = serve()
    service.wait_until_ready()
    workers = service.workers()
    assert service.end(number) == 0
    assert not [worker for worker in workers if is_alive(worker)]
    assert "Traceback" not in service.log
    assert not [event for event in service.events if event["level"] in ("error", "critical")]


def catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal. Until the service's first line, Python itself has none."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_it_quietly(serve: Callable[..., Service], number: signal.Signals) -> None:
    for delay in (0, 0.25, 0.5):
        service = serve()
        wait_for(partial(catches, service.process.pid, signal.SIGTERM))
        time.sleep(delay)
        assert service.end(number) in (0, 130, 143, -signal.SIGTERM, -signal.SIGINT)
        assert "Traceback" not in service.log, service


def test_a_worker_that_is_killed_is_replaced(serve: Callable[..., Service]) -> None:
    service = serve(CASES_WORKERS="1")
    service.wait_until_ready()
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    assert service.curl("/readyz").status == 200
    assert len(service.workers()) == 2


def test_a_worker_that_is_killed_costs_each_client_the_request_that_it_held(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    clients = [Client(service.port, keeps=False) for _ in range(20)]
    for client in clients:
        client.start()
    for killed in range(KILLS):
        time.sleep(0.3)
        os.kill(service.workers()[-1], signal.SIGKILL)
        wait_for(lambda number=killed: len(service.workers()) == 3 + number, story=service)  # type: ignore[misc]
    earlier = sum((client.results for client in clients), Counter())["200"]
    wait_for(lambda: sum((client.results for client in clients), Counter())["200"] > earlier + 100, story=service)
    assert service.end() == 0
    for client in clients:
        client.join(60)
        assert client.results["200"] > 0
        # And one in the queue of the kernel at the end, as above.
        assert client.results.total() - client.results["200"] <= KILLS + 1, client.results
    results = sum((client.results for client in clients), Counter())
    assert {name for name in results if name.isdecimal()} == {"200"}


def test_readiness_turns_away_before_the_service_stops(serve: Callable[..., Service]) -> None:
    service = serve(CASES_DRAIN_SECONDS="3", CASES_WORKERS="1")
    service.wait_until_ready()
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.curl("/readyz").status == 503, seconds=2)
    answer = service.curl("/readyz")
    assert (answer.json["code"], answer.json["detail"]) == ("unavailable", "The service is about to stop.")
    assert service.curl("/healthz").status == 200, "requests are taken as before"
    assert service.process.wait(PATIENCE) == 0


def test_when_the_master_is_killed_its_workers_end_and_the_port_is_free(
    serve: Callable[..., Service], start: Callable[..., Service], database_url: str
) -> None:
    service = serve()
    service.wait_until_ready()
    port, workers = service.port, service.workers()
    kept = service.connect()
    kept.sendall(REQUEST)
    read_answer(kept)
    service.end(signal.SIGKILL)
    again = start(*serve_arguments(f"{LOOPBACK}:{port}"), DATABASE_URL=database_url)
    again.wait_until_ready()
    wait_for(lambda: not [worker for worker in workers if is_alive(worker)], seconds=10)
    kept.close()


def test_hup_replaces_the_workers_and_loses_no_request(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    client = Client(service.port, keeps=False)
    client.start()
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(service.workers()) == 4, story=service)
    time.sleep(1)
    # Before the service ends, which may cost the one connection that slips in then, as above.
    client.stop()
    assert set(client.results) == {"200"}
    assert service.end() == 0

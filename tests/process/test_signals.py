"""Signals that come at a bad moment, or to every process of the group at once."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.factories import Organization
from tests.process.running import Service, is_alive, wait_for
from tests.process.test_stopping import Client, is_somebody_waiting

# Far less than any time-out that would end the processes, or the request, otherwise.
BOUND_SECONDS = 15

# Makes the moment in which a thread runs that its starter has not noted yet last a second.
SLOW_START = """
import pathlib, threading, time

start = threading.Thread.start

def slow_start(thread):
    start(thread)
    if thread.name.startswith(("ThreadPoolExecutor", "requests")):
        pathlib.Path({mark!r}).touch()
        time.sleep(1)

threading.Thread.start = slow_start
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_an_interrupt_while_a_thread_starts_ends_every_process(
    serve: Callable[..., Service], place: Path, number: signal.Signals
) -> None:
    mark = place / "thread-starts"
    (place / "sitecustomize.py").write_text(SLOW_START.format(mark=str(mark)))
    service = serve(PYTHONPATH=str(place), CASES_WORKERS="1", CASES_THREADS="2", CASES_GRACEFUL_TIMEOUT="60")
    wait_for(service.workers, story=service)
    client = service.connect()
    client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(mark.exists, story=service)
    time.sleep(0.2)
    began = time.monotonic()
    os.killpg(service.process.pid, number)
    assert service.process.wait(60) == 0, service
    assert time.monotonic() - began < BOUND_SECONDS
    assert not [worker for worker in service.workers() if is_alive(worker)]
    assert "Traceback" not in service.log
    client.close()


def test_an_interrupt_waits_for_no_request(
    serve: Callable[..., Service], organization: Organization, database_url: str
) -> None:
    service = serve(CASES_STATEMENT_TIMEOUT="20", CASES_LOCK_TIMEOUT="19", CASES_GRACEFUL_TIMEOUT="60")
    service.wait_until_ready()
    visitor = organization.visitor()
    request = (
        f"GET {visitor.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Token {organization.token}\r\n\r\n"
    ).encode()
    with psycopg.connect(database_url) as locked, service.connect() as client:
        locked.execute("lock table cases in access exclusive mode")
        client.sendall(request)
        wait_for(partial(is_somebody_waiting, database_url))
        began = time.monotonic()
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(60) == 0
        assert time.monotonic() - began < BOUND_SECONDS
    assert not [worker for worker in service.workers() if is_alive(worker)]
    assert not [event for event in service.events if event["level"] in ("error", "critical")]


def test_hup_to_the_whole_group_replaces_the_workers_and_loses_no_request(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    clients = [Client(service.port, keeps=False) for _ in range(4)]
    for client in clients:
        client.start()
    os.killpg(service.process.pid, signal.SIGHUP)
    wait_for(lambda: len(service.workers()) == 4, story=service)
    time.sleep(1)
    # Before the service ends, which may cost a connection that slips in then.
    for client in clients:
        client.stop()
        assert set(client.results) == {"200"}
    assert service.end() == 0
    assert "was sent" not in service.log


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH])
def test_other_signals_to_the_whole_group_leave_the_service_as_it_is(
    serve: Callable[..., Service], number: signal.Signals
) -> None:
    service = serve()
    service.wait_until_ready()
    os.killpg(service.process.pid, number)
    time.sleep(1.5)
    assert service.curl("/readyz").status == 200
    assert len(service.workers()) == 2
    assert ("SIGUSR2 is not supported" in service.log) == (number == signal.SIGUSR2)
    assert {event["level"] for event in service.events} <= {"info", "warning"}


def test_a_worker_whose_main_loop_hangs_is_ended_and_says_where(serve: Callable[..., Service]) -> None:
    service = serve(CASES_WORKERS="1")
    service.wait_until_ready()
    (worker,) = service.workers()
    os.kill(worker, signal.SIGABRT)
    wait_for(lambda: len(service.workers()) == 2, story=service)
    assert service.curl("/readyz").status == 200
    (said,) = [event for event in service.events if event["event"] == "worker_hangs"]
    assert any("connections.py" in frame for frame in said["frames"])

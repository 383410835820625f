"""Signals that come at a bad moment, or to every process of the group at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.running import Service, is_alive, wait_for

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
    service = serve(PYTHONPATH=str(place), CASES_WORKERS="1", CASES_THREADS="2")
    wait_for(service.workers, story=service)
    client = service.connect()
    client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(mark.exists, story=service)
    time.sleep(0.2)
    began = time.monotonic()
    os.killpg(service.process.pid, number)
    assert service.process.wait(60) == 0, service
    assert time.monotonic() - began < 8
    assert not [worker for worker in service.workers() if is_alive(worker)]
    assert "Traceback" not in service.log
    client.close()

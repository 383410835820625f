"""The machine of the service itself: its log cannot be written, and there is no memory left for its files."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY
from tests.process.conftest import serve_arguments
from tests.process.running import COMMAND, LOOPBACK, Service, environment, wait_for

PIPE_BYTES = 65536


def status(port: int, path: str = "/healthz", seconds: float = 5.0) -> int | None:
    """Return the status of an answer, None where none comes in time."""
    client = HTTPConnection(LOOPBACK, port, timeout=seconds)
    try:
        client.request("GET", path)
        return client.getresponse().status
    except OSError:
        return None
    finally:
        client.close()


@contextmanager
def logging_into(log: int, url: str) -> Iterator[int]:
    """Run the service with its log in a descriptor, and give its port."""
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    given = environment(DATABASE_URL=url, CASES_SECRET_KEY=SECRET_KEY, CASES_WORKERS="1")
    process = subprocess.Popen([COMMAND, "serve", "--bind", f"{LOOPBACK}:{port}"], env=given, stderr=log)
    try:
        wait_for(lambda: status(port) == 200, lambda: process.poll() is not None)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_costs_its_lines_and_no_answer(service_url: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with logging_into(full, service_url) as port:
        wait_for(lambda: status(port, "/readyz") == 200)
        assert [status(port, "/nothing") for _ in range(50)] == [404] * 50
    os.close(full)


def test_a_log_that_nobody_reads_holds_every_answer_until_somebody_does(service_url: str) -> None:
    reading, writing = os.pipe()
    with logging_into(writing, service_url) as port:
        wait_for(lambda: status(port, "/nothing", seconds=2.0) is None)
        assert status(port, seconds=2.0) is None, "not even /healthz"
        os.read(reading, PIPE_BYTES)
        wait_for(lambda: status(port, "/nothing") == 404)
    os.close(reading)
    os.close(writing)


def test_without_memory_for_its_files_workers_end_and_say_why(start: Callable[..., Service], service_url: str) -> None:
    unshare, mount = shutil.which("unshare"), "mount -t tmpfs -o size=8k tmpfs /dev/shm"
    if (
        unshare is None
        or subprocess.run([unshare, "-m", "sh", "-c", mount], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY}
    service = start(unshare, "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *serve_arguments(), **given)
    service.wait_for_log("was sent SIGBUS")

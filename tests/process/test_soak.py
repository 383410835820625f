"""The service under clients of every kind for a while, or for hours: what its workers hold does not grow."""

import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.factories import Organization
from tests.process.running import Service, wait_for
from tests.process.traffic import Traffic

SECONDS = float(os.environ.get("CASES_TEST_SOAK_SECONDS", "6"))
# What a worker's memory may gain after the first quarter, whichever is more.
GROWTH = 1.1
GROWTH_BYTES = 8 * 2**20
THREADS = 8


class Held(NamedTuple):
    """What a process holds."""

    memory: int
    files: int
    threads: int

    @classmethod
    def by(cls, process: int) -> "Held":
        place = Path(f"/proc/{process}")
        pages = int((place / "statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(memory, len(list((place / "fd").iterdir())), len(list((place / "task").iterdir())))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux, to see what a process holds")
def test_what_a_worker_holds_does_not_grow(
    serve: Callable[..., Service], organization: Organization, database_url: str, connection: psycopg.Connection
) -> None:
    url = make_conninfo(database_url, application_name="soaked")
    service = serve(DATABASE_URL=url, CASES_WORKERS="1", CASES_THREADS=str(THREADS))
    service.wait_until_ready()
    (worker,) = service.workers()
    visitor = organization.visitor()
    visitor.cases(25)
    header = f"Authorization: Token {organization.token}"
    begun: list[Held] = []
    began = time.monotonic()
    with Traffic(service, visitor.path, header, results=25, threads=4) as traffic:
        while time.monotonic() < began + SECONDS:
            misbehave(service, visitor.path)
            if random.random() < 0.1:  # noqa: S311
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'soaked' limit 1"
                )
            if not begun and time.monotonic() > began + SECONDS / 4:
                begun.append(Held.by(worker))
    assert (traffic.outcome.wrong, traffic.outcome.lost) == ([], [])
    assert service.workers() == [worker]
    wait_for(lambda: Held.by(worker).files <= begun[0].files, story=(begun, Held.by(worker)), seconds=30)
    ended = Held.by(worker)
    print(f"{traffic.outcome.as_row()}\nafter a quarter {begun[0]}\nat the end      {ended}")  # noqa: T201
    # Those that handle requests are started as they are needed.
    assert ended.threads <= begun[0].threads + THREADS
    assert ended.memory <= max(begun[0].memory * GROWTH, begun[0].memory + GROWTH_BYTES)


def misbehave(service: Service, path: str) -> None:
    """Be a client that breaks off, sends nonsense, reads nothing or says nothing."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
    for words in (
        "",
        request,
        f"{request}\r\n",
        "nonsense\r\n\r\n",
        f"{request}Content-Length: 9\r\n\r\n",
        "x" * 70_000,
    ):
        with service.connect() as client, suppress(OSError):
            client.sendall(words.encode())
            if random.random() < 0.5:  # noqa: S311
                client.shutdown(socket.SHUT_WR)
    time.sleep(0.05)

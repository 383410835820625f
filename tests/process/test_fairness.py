"""One organization, or one visitor of it, asks for more than the connections can carry, and its neighbours are served.

Reads are slow by a sleep, only for visitors whose external id says so.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.credentials.secret_encryption import SecretBox
from cases_service.embedded.server import join
from tests.factories import SECRET_KEY, Organization
from tests.metrics import samples, value
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, stop
from tests.process.running import Service, read_answer

CLIENTS = 40
SLEEP_SECONDS = 2
REQUESTS = 30
# Less than a slow read, which a neighbour who is starved waits for. A page takes some milliseconds; the rest is the
# machine's, on which forty clients ask again at once.
BOUND_SECONDS = 1.5

SLOW = f"""
create role visitor_cases login;
grant pg_read_all_data to visitor_cases;
alter table visitors enable row level security;
create policy everything on visitors using (true);
create policy slowly on visitors as restrictive
    using (external_id not like 'heavy%' or pg_sleep({SLEEP_SECONDS}) is not null);
"""


class World(NamedTuple):
    """A service with a worker of eight threads and four connections, and two organizations that it has seen lately."""

    service: Service
    heavy: Organization
    light: Organization


@pytest.fixture
def world(data_dir: Path, start: Callable[..., Service]) -> Iterator[World]:
    server = join(data_dir, settings=FAST)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute(SLOW.encode())
        box = SecretBox([SECRET_KEY])
        variables = {"DATABASE_URL": make_conninfo(server.conninfo, user="visitor_cases"), "CASES_WORKERS": "1"}
        service = start(*serve_arguments(), CASES_SECRET_KEY=SECRET_KEY, **variables)
        service.wait_until_ready()
        yield World(service, Organization(connection, box), Organization(connection, box))
    stop(server)


def request(organization: Organization, external_id: str) -> bytes:
    path = f"/api/v5/orgs/{organization.id}/external-visitors/-/cases"
    jwt = organization.jwt(external_id)
    head = f"Host: localhost\r\nAuthorization: Token {organization.token}\r\nX-External-Identity: {jwt}\r\n"
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


@contextmanager
def asked_without_an_end(service: Service, requests: list[bytes]) -> Iterator[None]:
    """Ask for ever, each request on a connection of its own that is kept, until the context ends."""
    ended = threading.Event()

    def ask(number: int) -> None:
        with service.connect() as client:
            while not ended.is_set():
                client.sendall(requests[number % len(requests)])
                read_answer(client)

    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [threads.submit(ask, number) for number in range(CLIENTS)]
        try:
            # The first reads take every turn, since nobody knows yet that they are slow.
            time.sleep(SLEEP_SECONDS + 1)
            yield
        finally:
            ended.set()
        for client in clients:
            client.result()


def asked(service: Service, head: bytes, *, number: int = REQUESTS) -> tuple[list[int], float]:
    """Return the statuses of requests one after the other, and how long the slowest took."""
    statuses, slowest = [], 0.0
    with service.connect() as client:
        for _ in range(number):
            began = time.monotonic()
            client.sendall(head)
            statuses.append(read_answer(client).status)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    return statuses, slowest


def refused(service: Service, share: str) -> float:
    return value(samples(service.curl("/metrics").body.decode()), "cases_pool_shares_exceeded_total", share=share)


def test_an_organization_that_asks_too_much_does_not_starve_another_one(world: World) -> None:
    heavy = [request(world.heavy, world.heavy.visitor(f"heavy-{number}").external_id) for number in range(CLIENTS)]
    light = request(world.light, world.light.visitor("light").external_id)
    assert asked(world.service, light, number=1)[0] == [200]
    with asked_without_an_end(world.service, heavy):
        statuses, slowest = asked(world.service, light)
    assert statuses == [200] * REQUESTS
    assert slowest < BOUND_SECONDS
    assert refused(world.service, "organization") > 0


def test_a_visitor_who_asks_too_much_does_not_starve_another_one_of_the_organization(world: World) -> None:
    heavy = request(world.heavy, world.heavy.visitor("heavy").external_id)
    light = request(world.heavy, world.heavy.visitor("light").external_id)
    assert asked(world.service, light, number=1)[0] == [200]
    with asked_without_an_end(world.service, [heavy]):
        statuses, slowest = asked(world.service, light)
    assert statuses == [200] * REQUESTS
    assert slowest < BOUND_SECONDS
    assert refused(world.service, "visitor") > 0


def test_an_organization_that_is_alone_has_every_connection(world: World) -> None:
    heavy = [request(world.heavy, world.heavy.visitor(f"heavy-{number}").external_id) for number in range(4)]
    assert asked(world.service, heavy[0], number=1)[0] == [200]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        found = [future.result() for future in [threads.submit(asked, world.service, head, number=2) for head in heavy]]
    assert [statuses for statuses, _ in found] == [[200] * 2] * 4
    # One after the other they would take four times as long as side by side.
    assert time.monotonic() - began < 2 * SLEEP_SECONDS * 2 + 1

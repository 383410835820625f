"""Metrics of the real gunicorn: added up over its workers, kept when one dies, and gone with the service."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.factories import SECRET_KEY, Organization
from tests.metrics import Samples, samples, value
from tests.process.conftest import serve_arguments
from tests.process.running import LOOPBACK, Service, wait_for

MEMORY = Path("/dev/shm")  # noqa: S108
IN_MEMORY = pytest.mark.skipif(not MEMORY.is_dir(), reason="this system has no /dev/shm")


def scrape(service: Service, port: int | None = None) -> Samples:
    answer = service.curl("/metrics", port=port)
    assert answer.status == 200
    return samples(answer.body.decode())


def healthz(service: Service) -> float:
    return value(scrape(service), "cases_requests_total", route="/healthz", status="200")


def directories() -> set[Path]:
    return {path for path in MEMORY.glob("cases-metrics-*") if path.stat().st_uid == os.getuid()}


def opened_by(number: int) -> set[Path]:
    """Return the directories of metrics in which a process has files."""
    links = (path.readlink() for path in Path(f"/proc/{number}/fd").iterdir() if path.is_symlink())
    return {link.parent for link in links if link.parent.name.startswith("cases-metrics-")}


def test_whichever_worker_is_asked_tells_of_all(serve: Callable[..., Service]) -> None:
    service = serve(CASES_WORKERS="3")
    service.wait_until_ready()
    wait_for(lambda: value(scrape(service), "cases_workers") == 3, story=service)
    for _ in range(30):
        assert service.curl("/healthz").status == 200
    assert {healthz(service) for _ in range(10)} == {30}
    assert value(scrape(service), "cases_pool_connections_max", pool="primary") == 12


@IN_MEMORY
def test_a_file_that_is_empty_for_a_moment_is_waited_for(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    (directory,) = opened_by(service.workers()[0])
    new = directory / "counter_new.db"
    new.touch()
    filled = threading.Timer(0.05, os.truncate, (new, 1024))
    filled.start()
    assert healthz(service) == 0
    filled.join()


def test_a_worker_that_is_killed_takes_no_count_along(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    for _ in range(20):
        service.curl("/healthz")
    for generation in range(3):
        first, *_ = service.workers()[-2:]
        os.kill(first, signal.SIGKILL)
        wait_for(lambda known=3 + generation: len(service.workers()) == known, story=service)  # type: ignore[misc]
        assert healthz(service) == 20
    wait_for(lambda: value(scrape(service), "cases_workers") == 2, story=service)


@IN_MEMORY
def test_the_files_do_not_become_more_with_every_worker(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    (directory,) = opened_by(service.workers()[0])
    assert directory.stat().st_mode & 0o777 == 0o700
    for generation in range(4):
        os.kill(service.workers()[-1], signal.SIGKILL)
        wait_for(lambda known=3 + generation: len(service.workers()) == known, story=service)  # type: ignore[misc]
        service.wait_until_ready()
    # One can be held for a moment by the master, who looks whether its worker lives.
    assert len(list(directory.glob("*.lock"))) <= 3
    assert service.end() == 0
    assert not directory.exists()


@IN_MEMORY
@pytest.mark.parametrize("how", ["serve", "gunicorn"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_nothing_is_left_behind(request: pytest.FixtureRequest, how: str, number: signal.Signals) -> None:
    service = request.getfixturevalue(how)()
    service.wait_until_ready()
    (directory,) = opened_by(service.workers()[0])
    assert directory in directories()
    service.end(number)
    wait_for(lambda: not directory.exists(), story=service)


def test_operators_have_an_address_of_their_own(start: Callable[..., Service], database_url: str) -> None:
    service = start(*serve_arguments(), DATABASE_URL=database_url, CASES_ADMIN_BIND=f"{LOOPBACK}:0")
    admin = service.admin_port
    wait_for(lambda: service.curl("/readyz", port=admin).status == 200, story=service)
    assert value(scrape(service, admin), "cases_requests_total", route="/readyz", status="200") >= 1
    for path in ("/readyz", "/metrics"):
        assert service.curl(path).status == 404
        assert service.curl(path, "--header", f"Host: {LOOPBACK}:{admin}").status == 404
    for port in (None, admin):
        assert service.curl("/healthz", port=port).status == 200
    assert service.end() == 0


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def test_plain_gunicorn_listens_there_too(gunicorn: Callable[..., Service]) -> None:
    port = free_port()
    service = gunicorn(CASES_ADMIN_BIND=f"{LOOPBACK}:{port}")
    assert service.admin_port == port
    wait_for(lambda: service.curl("/readyz", port=port).status == 200, story=service)
    assert service.curl("/readyz").status == 404


def test_operators_are_answered_while_every_thread_waits(
    start: Callable[..., Service], organization: Organization, database_url: str
) -> None:
    variables = {"CASES_WORKERS": "1", "CASES_THREADS": "2", "CASES_POOL_SIZE": "3", "CASES_STATEMENT_TIMEOUT": "30"}
    variables |= {"CASES_POOL_TIMEOUT": "20", "CASES_GRACEFUL_TIMEOUT": "300"}
    given = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_ADMIN_BIND": f"{LOOPBACK}:0"}
    service = start(*serve_arguments(), **given, **variables)
    admin = service.admin_port
    wait_for(lambda: service.curl("/readyz", port=admin).status == 200, story=service)
    path, header = organization.visitor().path, f"Authorization: Token {organization.token}"
    statuses: list[int] = []
    requests = [
        threading.Thread(target=lambda: statuses.append(service.curl(path, "--header", header).status))
        for _ in range(4)
    ]
    with psycopg.connect(database_url) as locked:
        locked.execute("lock table cases in access exclusive mode")
        for request in requests:
            request.start()
        wait_for(lambda: waiting(database_url) == 2, story=service)
        assert service.curl("/readyz", port=admin).status == 200
        wait_for(lambda: value(scrape(service, admin), "cases_pool_connections_in_use") == 2, story=service)
        assert not statuses
    for request in requests:
        request.join()
    assert statuses == [200] * 4


def waiting(database_url: str) -> int:
    """Return how many connections wait for a lock."""
    with psycopg.connect(database_url) as connection:
        asked = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return len(connection.execute(asked).fetchall())

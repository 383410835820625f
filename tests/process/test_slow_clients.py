"""Clients that take their time, on bare gunicorn: they cost connections, and no thread."""

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY, Organization
from tests.process.conftest import killed_at_end, serve_arguments, short_path
from tests.process.running import (
    LOOPBACK,
    PATIENCE,
    PROJECT,
    Service,
    clients,
    environment,
    read_all,
    read_answer,
    wait_for,
)
from tests.torture import times

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
# Of one worker: several for each of its eight threads.
MANY = times(60, torture=600)


@pytest.fixture(scope="module")
def single(database_url: str) -> Iterator[Service]:
    """A service of one worker, so that every client meets the same threads."""
    variables = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_WORKERS": "1"}
    with short_path() as path:
        service = Service(serve_arguments(), environment(**variables), path, cwd=path)
        with killed_at_end([service]):
            service.wait_until_ready()
            yield service


@contextmanager
def unread(port: int) -> Iterator[socket.socket]:
    """Connect a client that takes the least that a kernel lets it, and reads nothing by itself."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.settimeout(PATIENCE)
        client.connect((LOOPBACK, port))
        yield client


def ask_until_dropped(client: socket.socket) -> None:
    """Ask and ask until the connection is reset."""
    for _ in range(100_000):
        try:
            client.sendall((HEAD + b"\r\n") * 100)
        except ConnectionError:
            return
    pytest.fail("everything was taken")


@pytest.fixture
def others_are_answered(single: Service, organization: Organization) -> Callable[[], None]:
    visitor = organization.visitor()
    visitor.cases(3)

    def check() -> None:
        for path, status in (("/healthz", 200), ("/nowhere", 404), (visitor.path, 200)):
            answer = single.curl(path, "--header", f"Authorization: Token {organization.token}", "--max-time", "4")
            assert answer.status == status

    return check


@pytest.mark.parametrize("beginning", [b"", b"GE", HEAD, HEAD + b"X-External-Identity: a"])
def test_a_head_that_is_still_coming_holds_no_thread(
    single: Service, others_are_answered: Callable[[], None], beginning: bytes
) -> None:
    with clients(single, MANY, beginning):
        others_are_answered()


def test_a_head_that_comes_byte_by_byte_holds_no_thread_and_is_answered(
    single: Service, others_are_answered: Callable[[], None]
) -> None:
    request = HEAD + b"\r\n"
    with clients(single, MANY, b"") as slow:
        for place in range(len(request)):
            for client in slow:
                client.sendall(request[place : place + 1])
            if place % 20 == 0:
                others_are_answered()
        assert [read_answer(client).status for client in slow] == [200] * MANY


def test_neither_does_the_next_head_on_a_connection_that_is_kept(
    single: Service, others_are_answered: Callable[[], None]
) -> None:
    # The first request together with the beginning of the second, which then waits in the parser.
    with clients(single, MANY, HEAD + b"\r\n" + HEAD) as slow:
        assert {read_answer(client).status for client in slow} == {200}
        others_are_answered()
        for client in slow:
            client.sendall(b"\r\n")
        assert {read_answer(client).status for client in slow} == {200}


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe", b"Content-Length: 1\r\n\r\n"],
)
def test_a_body_that_never_comes_holds_no_thread(
    single: Service, others_are_answered: Callable[[], None], framing: bytes
) -> None:
    with clients(single, MANY, HEAD + framing) as slow:
        others_are_answered()
        # It is not needed for the answer, and without it nobody knows where the next request begins.
        for client in slow:
            assert read_answer(client).status == 200
            assert read_all(client) == b""


@contextmanager
def slow_readers(service: Service, request: bytes) -> Iterator[list[socket.socket]]:
    """Connect three clients for each thread, who ask and read nothing yet, and wait until all have their answer."""
    earlier = service.log.count('"event":"request"')
    with ExitStack() as stack:
        readers = [stack.enter_context(unread(service.port)) for _ in range(24)]
        for client in readers:
            client.sendall(request)
        wait_for(lambda: service.log.count('"event":"request"') >= earlier + 24, story=service)
        yield readers


def test_a_page_that_nobody_reads_holds_no_thread(
    single: Service, organization: Organization, others_are_answered: Callable[[], None]
) -> None:
    visitor = organization.visitor()
    for _ in range(100):
        organization.case(visitor.contact_ids[0], description="x" * 20_000)
    request = (
        f"GET {visitor.path}?page_size=100 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Token {organization.token}\r\n\r\n"
    ).encode()
    with slow_readers(single, request) as readers:
        for _ in range(10):
            others_are_answered()
        assert len(read_answer(readers[0]).json["results"]) == 100


def test_a_file_that_nobody_reads_holds_no_thread_and_no_memory(
    single: Service, others_are_answered: Callable[[], None]
) -> None:
    assert len(single.curl("/docs/swagger-ui-bundle.js").body) > 1_000_000
    earlier = resident_bytes(single)
    request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with slow_readers(single, request) as readers:
        for _ in range(10):
            others_are_answered()
        # A copy for each of them would take 33 MB.
        assert resident_bytes(single) - earlier < 16_000_000
        for client in readers[:3]:
            answer = read_answer(client)
            assert answer.status == 200
            assert answer.body == read_file("swagger-ui-bundle.js")
            client.sendall(HEAD + b"\r\n")
            assert read_answer(client).status == 200, "the connection is kept"


def read_file(name: str) -> bytes:
    return (PROJECT / "cases_service/api/docs_page/swagger-ui" / name).read_bytes()


def resident_bytes(service: Service) -> int:
    (worker,) = service.workers()
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep no arenas")
def test_the_memory_of_large_answers_is_given_back(serve: Callable[..., Service], organization: Organization) -> None:
    single = serve(CASES_WORKERS="1", CASES_POOL_TIMEOUT="10", CASES_GRACEFUL_TIMEOUT="90")
    single.wait_until_ready()
    visitor = organization.visitor()
    for _ in range(100):
        organization.case(visitor.contact_ids[0], description="\u00e4" * 60_000)
    header = ("--header", f"Authorization: Token {organization.token}")
    # So few that the answers stay within the memory for unsent ones, where clients that stall are not dropped.
    with ThreadPoolExecutor(5) as clients:
        small = list(clients.map(lambda _: single.curl(f"{visitor.path}?page_size=1", *header), range(40)))
        earlier = resident_bytes(single)
        large = list(clients.map(lambda _: single.curl(f"{visitor.path}?page_size=100", *header), range(40)))
    assert {answer.status for answer in small + large} == {200}
    assert all(len(answer.body) > 12_000_000 for answer in large)
    wait_for(lambda: resident_bytes(single) - earlier < 16_000_000, seconds=15)


def test_a_client_that_asks_and_asks_and_never_reads_is_dropped(
    single: Service, others_are_answered: Callable[[], None]
) -> None:
    with unread(single.port) as client:
        ask_until_dropped(client)
    others_are_answered()
    wait_for(lambda: "answer_not_read" in single.log, story=single)


def test_a_slow_reader_gets_the_whole_answer(single: Service, organization: Organization) -> None:
    visitor = organization.visitor()
    for _ in range(40):
        organization.case(visitor.contact_ids[0], description="x" * 4000)
    with unread(single.port) as client:
        client.sendall(
            f"GET {visitor.path}?page_size=40 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Authorization: Token {organization.token}\r\n\r\n".encode()
        )
        time.sleep(1)
        answer = read_answer(client)
    assert answer.status == 200
    assert len(answer.json["results"]) == 40


def test_half_a_head_is_refused_in_the_end_and_delays_the_stop_by_seconds_at_most(
    serve: Callable[..., Service],
) -> None:
    service = serve()
    with clients(service, MANY, HEAD) as slow:
        time.sleep(0.5)
        began = time.monotonic()
        assert service.end() == 0
        # They would have twenty seconds for a head.
        assert time.monotonic() - began < 19
        assert all(read_all(client).startswith(b"HTTP/1.1 408 ") for client in slow)


@pytest.mark.parametrize(("beginning", "status"), [(b"GET /", b"414"), (HEAD + b"A: ", b"431")])
def test_a_head_without_an_end_is_refused(single: Service, beginning: bytes, status: bytes) -> None:
    assert single.send(beginning + b"x" * 100_000).startswith(b"HTTP/1.1 " + status)

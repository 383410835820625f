"""Bodies on bare gunicorn: none holds a thread, and none is longer than it may be."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY
from tests.process.conftest import killed_at_end, short_path
from tests.process.running import (
    GUNICORN,
    LOOPBACK,
    PROJECT,
    Service,
    clients,
    environment,
    parse_answer,
    read_all,
    read_answer,
)

MIB = 1024 * 1024
MANY = 30

# Says what it was given, as the routes that write will see it.
ECHO = """
import json

class Echo:
    def close(self):
        pass

    def start_draining(self):
        return 0.0

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read()
        said = {
            "length": len(body),
            "start": body[:20].decode("latin-1"),
            "too_large": environ.get("cases.body_too_large", False),
            "overloaded": environ.get("cases.overloaded", False),
        }
        answer = json.dumps(said).encode()
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

app = Echo()
"""


@pytest.fixture(scope="module")
def echo(database_url: str) -> Iterator[Service]:
    """Bare gunicorn, one worker of two threads, with an application that tells what body it was given."""
    given = {"DATABASE_URL": database_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_BIND": f"{LOOPBACK}:0"}
    with short_path() as path:
        (path / "echo.py").write_text(ECHO)
        arguments = [GUNICORN, "-c", str(PROJECT / "gunicorn.conf.py"), "echo:app"]
        variables = environment(CASES_WORKERS="1", CASES_THREADS="2", **given)
        service = Service(arguments, variables, path, cwd=path)
        with killed_at_end([service]):
            assert service.port
            yield service


def head(framing: str, method: str = "POST", path: str = "/") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode()


def length(number: int, path: str = "/") -> bytes:
    return head(f"Content-Length: {number}", path=path)


CHUNKED = head("Transfer-Encoding: chunked")


def others_are_answered(service: Service) -> None:
    for _ in range(5):
        assert service.curl("/", "--max-time", "4").json["length"] == 0
        assert service.curl("/", "--max-time", "4", "--data-binary", "hello").json["start"] == "hello"


@pytest.mark.parametrize(
    "request_", [length(5) + b"hello", CHUNKED + b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX-Sum: 1\r\n\r\n"]
)
def test_a_body_reaches_the_application_and_the_connection_is_kept(echo: Service, request_: bytes) -> None:
    with echo.connect() as client:
        for _ in range(2):
            client.sendall(request_)
            assert read_answer(client).json["start"] == "hello"


def test_requests_may_follow_one_another_without_waiting(echo: Service) -> None:
    with echo.connect() as client:
        client.sendall(length(5) + b"first" + CHUNKED + b"6\r\nsecond\r\n0\r\n\r\n" + head("Connection: close", "GET"))
        answers = read_all(client)
    assert [start in answers for start in (b'"first"', b'"second"', b'"start": ""')] == [True] * 3


@pytest.mark.parametrize("beginning", [length(10), length(10) + b"hel", CHUNKED, CHUNKED + b"5\r\nhe"])
def test_bodies_that_never_come_hold_no_thread_and_are_refused(echo: Service, beginning: bytes) -> None:
    with clients(echo, MANY, beginning) as slow:
        others_are_answered(echo)
        if b"hel" in beginning:
            assert all(read_all(client).startswith(b"HTTP/1.1 408 ") for client in slow)


def test_a_byte_at_a_time_holds_no_thread_and_is_answered(echo: Service) -> None:
    with clients(echo, MANY, length(10)) as slow:
        for _ in range(10):
            for client in slow:
                client.sendall(b"x")
            others_are_answered(echo)
        assert [read_answer(client).json["length"] for client in slow] == [10] * MANY


def test_what_is_longer_than_it_says_is_the_next_request(echo: Service) -> None:
    with echo.connect() as client:
        client.sendall(length(5) + b"hello, world\r\n\r\n")
        answers = read_all(client)
    assert b'"start": "hello"' in answers
    assert answers.rpartition(b"HTTP/1.1 ")[2].startswith(b"400 ")


@pytest.mark.parametrize("beginning", [length(10) + b"short", CHUNKED + b"a\r\nshort", CHUNKED + b"5\r\nshort\r\n"])
def test_what_is_shorter_than_it_says_is_refused(echo: Service, beginning: bytes) -> None:
    with echo.connect() as client:
        client.sendall(beginning)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("path", "number", "is_too_large"),
    [("/", MIB, False), ("/", MIB + 1, True), ("/a/import", 16 * MIB, False), ("/a/import/", 16 * MIB + 1, True)],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_has_a_longest_length(
    echo: Service, path: str, number: int, *, is_too_large: bool, is_chunked: bool, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"x" * number)
    framing = ["--header", "Transfer-Encoding: chunked"] if is_chunked else []
    answer = echo.curl(path, "--data-binary", f"@{tmp_path / 'body'}", "--header", "Expect:", *framing)
    assert answer.json["too_large"] is is_too_large
    assert answer.json["length"] == (0 if is_too_large else number)
    assert answer.headers["connection"] == ("close" if is_too_large else "keep-alive")


@pytest.mark.parametrize("announced", [2 * MIB, 10**18])
def test_who_sends_far_too_much_can_read_the_answer(echo: Service, announced: int) -> None:
    with echo.connect() as client:
        client.sendall(length(announced))
        for _ in range(20):
            client.sendall(b"x" * MIB)
        answer, _, rest = read_all(client).partition(b"\r\n\r\n")
    assert parse_answer(answer, rest).json["too_large"]


def test_what_is_expected_to_be_allowed_is(echo: Service) -> None:
    with echo.connect() as client:
        client.sendall(head("Content-Length: 5\r\nExpect: 100-continue"))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_answer(client).json["start"] == "hello"


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_will_not_be_read_is_not_asked_for(echo: Service, method: str) -> None:
    with echo.connect() as client:
        client.sendall(head(f"Content-Length: {2 * MIB}\r\nExpect: 100-continue", method))
        assert read_answer(client).json["too_large"] is (method == "POST")


MALFORMED = {
    "no size": b"\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n",
    "a space in front": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "a bare line feed": b"5\nhello\r\n0\r\n\r\n",
    "an extension that is none": b"5;=\r\nhello\r\n0\r\n\r\n",
    "a carriage return in an extension": b"5;a=\r \r\nhello\r\n0\r\n\r\n",
    "a long size": b"0" * 400,
    "a large size": b"f" * 17 + b"\r\n",
    "more data than the size": b"5\r\nhello!\r\n0\r\n\r\n",
    "less data than the size": b"5\r\nhell\r\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nnonsense\r\n\r\n",
    "a trailer that may not be one": b"0\r\nContent-Length: 3\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a bare line feed in a trailer": b"0\r\nA: b\nC: d\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_chunks_are_read_to_the_letter(echo: Service, name: str) -> None:
    earlier = len(echo.log)
    assert (
        echo.send(CHUNKED + MALFORMED[name])
        == b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    assert "hello" not in echo.log[earlier:]


def test_trailers_without_an_end_are_refused(echo: Service) -> None:
    assert echo.send(CHUNKED + b"0\r\n" + b"A: b\r\n" * 2000).startswith(b"HTTP/1.1 431 ")


def test_the_bodies_of_a_worker_are_bounded_and_others_are_answered(echo: Service) -> None:
    """Sixteen megabytes four times are what all may take; what comes on top is told so."""
    request = length(16 * MIB, "/a/import") + b"x" * (16 * MIB - 1)
    with clients(echo, 4, request), echo.connect() as fifth:
        time.sleep(0.5)
        fifth.sendall(length(MIB) + b"x" * MIB)
        assert read_answer(fifth).json["overloaded"]
        assert echo.curl("/").status == 200
    time.sleep(0.5)
    with echo.connect() as later:
        later.sendall(length(MIB) + b"x" * MIB)
        assert read_answer(later).json["length"] == MIB


def test_the_service_answers_a_body_that_is_too_large_in_the_order_of_its_checks(service: Service) -> None:
    answer = service.curl(
        "/healthz", "--data-binary", "@-", "--header", f"Content-Length: {2 * MIB}", "--header", "Expect:"
    )
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")


def test_without_room_for_the_body_the_service_says_that_it_is_overloaded(serve: Callable[..., Service]) -> None:
    service = serve(CASES_WORKERS="1")
    service.wait_until_ready()
    request = length(16 * MIB, "/a/import") + b"x" * (16 * MIB - 1)
    with clients(service, 4, request), service.connect() as fifth:
        time.sleep(0.5)
        fifth.sendall(length(MIB) + b"x" * MIB)
        answer = read_answer(fifth)
    assert (answer.status, answer.json["code"]) == (503, "overloaded")

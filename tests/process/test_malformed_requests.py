"""What gunicorn itself refuses: a status and nothing else, and a line in the log that repeats nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.conftest import serve_arguments
from tests.process.running import Service, wait_for

CANARY = "eyJjYW5hcnki"
TOKEN = f"{CANARY}.{CANARY}.{CANARY}"
PATH = f"/api/v5/orgs/x/external-visitors/{TOKEN}/cases"
GOOD = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nX-External-Identity: {TOKEN}\r\n"

REFUSED = {
    "a space in the path": (400, f"GET {PATH} x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "no version": (400, f"GET {PATH}\r\n\r\n"),
    "another version": (400, f"GET {PATH} HTTP/{CANARY}\r\n\r\n"),
    "HTTP/2 without a preface": (400, f"GET {PATH} HTTP/2.0\r\n\r\n"),
    "a method in lower case": (400, f"get {PATH} HTTP/1.1\r\n\r\n"),
    "a method of canaries": (400, f"{CANARY} / HTTP/1.1\r\n\r\n"),
    "a method that is long": (400, f"{CANARY.upper() * 3} / HTTP/1.1\r\n\r\n"),
    "an asterisk": (400, f"GET * HTTP/1.1\r\nX-External-Identity: {TOKEN}\r\n\r\n"),
    "bytes beyond ASCII in the path": (400, f"GET {PATH}\xff HTTP/1.1\r\n\r\n"),
    "a control character in the path": (400, f"GET {PATH}\x01 HTTP/1.1\r\n\r\n"),
    "an authority instead of a path": (400, f"GET {CANARY}:443 HTTP/1.1\r\n\r\n"),
    "a bracket in the authority": (400, f"GET http://[{CANARY}/ HTTP/1.1\r\n\r\n"),
    "a bare line feed": (400, f"GET {PATH} HTTP/1.1\nHost: localhost\n\n"),
    "a header without a colon": (400, f"{GOOD}Authorization Token {TOKEN}\r\n\r\n"),
    "a space before the colon": (400, f"{GOOD}Authorization : Token {TOKEN}\r\n\r\n"),
    "a header name of brackets": (400, f"{GOOD}({TOKEN}): x\r\n\r\n"),
    "a null in a header": (400, f"{GOOD}Authorization: Token {TOKEN}\0\r\n\r\n"),
    "a folded header": (400, f"{GOOD}Authorization: Token\r\n {TOKEN}\r\n\r\n"),
    "a bare line feed in the headers": (400, f"{GOOD}Authorization: Token {TOKEN}\n\r\n\r\n"),
    "Host twice": (400, f"{GOOD}Host: {CANARY}\r\n\r\n"),
    "Content-Length that is no number": (400, f"{GOOD}Content-Length: {CANARY}\r\n\r\n"),
    "Content-Length twice": (400, f"{GOOD}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "Content-Length and chunked": (400, f"{GOOD}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "an unknown transfer coding": (501, f"{GOOD}Transfer-Encoding: {CANARY}\r\n\r\n"),
    "an unknown expectation": (417, f"{GOOD}Expect: {CANARY}\r\n\r\n"),
    "a long request line": (414, f"GET {PATH}?{'x' * 8190} HTTP/1.1\r\n\r\n"),
    "a long header": (431, f"{GOOD}X-External-Identity: {TOKEN * 2000}\r\n\r\n"),
    "many headers": (431, GOOD + f"X-A: {CANARY}\r\n" * 101 + "\r\n"),
    "PROXY protocol": (400, f"PROXY TCP4 {CANARY} 127.0.0.1 1 2\r\n{GOOD}\r\n"),
    "TLS": (400, f"\x16\x03\x01\x02\x00\x01\x00{CANARY}\r\n\r\n"),
}

UNFINISHED = {
    "in the request line": f"GET {PATH}",
    "in the headers": GOOD,
    "in a header": f"{GOOD}Authorization: Token {TOKEN}",
    "in the body": f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{TOKEN}",
    "in a chunk": f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{CANARY}",
}


def assert_says_nothing(log: str) -> None:
    assert CANARY not in log
    assert CANARY.upper() not in log
    assert "external-visitors/ey" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_repeats_nothing(service: Service, name: str) -> None:
    status, request = REFUSED[name]
    earlier = len(service.log)
    answer = service.send(request.encode("latin-1"))
    head, separator, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert lines[1:] == ["Connection: close", "Content-Length: 0"]
    assert (separator, body) == (b"\r\n\r\n", b"")
    log = service.log[earlier:]
    events = [json.loads(line) for line in log.splitlines()]
    refusals = [event for event in events if event["event"] == "request_refused"]
    assert [(event["status"], event["level"]) for event in refusals] == [(status, "warning")]
    assert_says_nothing(log)


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_request_that_breaks_off_is_not_repeated(service: Service, name: str) -> None:
    earlier = len(service.log)
    with service.connect() as client:
        client.sendall(UNFINISHED[name].encode())
    wait_for(lambda: len(service.log) > earlier, story=service)
    service.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert_says_nothing(service.log[earlier:])


def test_neither_are_requests_that_the_application_answers(service: Service) -> None:
    earlier = len(service.log)
    for request in (
        f"{GOOD}\r\n",
        f"{GOOD}Authorization: Token {TOKEN}\r\n\r\n",
        f"{GOOD}Authorization: Basic {TOKEN}\r\n\r\n",
        f"{GOOD}X-Request-ID: {CANARY}.\r\n\r\n",
        f"BREW /{TOKEN} HTTP/1.1\r\nHost: {CANARY}\r\nReferer: http://localhost{PATH}\r\n\r\n",
        f"GET http://{CANARY}{PATH}?cursor={TOKEN} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ):
        with service.connect() as client:
            client.sendall(request.encode())
            assert b"HTTP/1.1 4" in client.recv(65536)
    assert_says_nothing(service.log[earlier:])


FAILING = """
import sys
sys.path.insert(0, {project!r})
from cases_service.application import create_app

class Failing:
    def __init__(self):
        self.application = create_app()
        self.close = self.application.close
        self.start_draining = self.application.start_draining

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"].startswith("/fail"):
            raise RuntimeError("never to be seen: " + environ["RAW_URI"])
        if environ["PATH_INFO"].startswith("/halfway"):
            start_response("200 OK", [("Content-Length", "1000")])(b"half")
            raise RuntimeError("never to be seen: " + environ["RAW_URI"])
        if environ["PATH_INFO"].startswith("/header"):
            start_response("200 OK", [("X-Bad", environ["RAW_URI"] + "\\n")])
        return self.application(environ, start_response)

app = Failing()
"""


@pytest.mark.parametrize("path", ["/fail", "/halfway", "/header"])
def test_an_exception_outside_the_application_is_a_bare_500(
    start: Callable[..., Service], place: Path, database_url: str, path: str
) -> None:
    project = str(Path(__file__).parents[2])
    (place / "failing.py").write_text(FAILING.format(project=project))
    arguments = ["-c", f"{project}/gunicorn.conf.py", "failing:app"]
    service = start(
        str(Path(serve_arguments()[0]).with_name("gunicorn")),
        *arguments,
        DATABASE_URL=database_url,
        CASES_BIND="127.0.0.1:0",
        CASES_LOG_LEVEL="debug",
    )
    answer = service.send(f"GET {path}/{TOKEN} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b"\r\nContent-Length: 0\r\n\r\n")
    failure = wait_for(lambda: [event for event in service.events if event["level"] == "error"], story=service)[0]
    assert failure["error"] in ("RuntimeError", "InvalidResponseHeader")
    assert any("failing.py" in frame for frame in failure["frames"])
    assert "never to be seen" not in service.log
    assert_says_nothing(service.log)

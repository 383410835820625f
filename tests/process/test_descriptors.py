"""Where files run out: connections of clients are bounded, and the silent ones are closed first."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.factories import SECRET_KEY, Organization
from tests.process.conftest import serve_arguments
from tests.process.running import COMMAND, PATIENCE, Service, environment, read_answer, wait_for

FILES = 128
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def serve_with_few_files(start: Callable[..., Service], service_url: str) -> Callable[..., Service]:
    def serve(files: int = FILES, limit: str = "-n", **variables: str) -> Service:
        given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_WORKERS": "1"}
        shell = ("sh", "-c", f'ulimit {limit} {files} && exec "$@"', "sh")
        service = start(*shell, *serve_arguments(), **(given | variables))
        service.wait_until_ready()
        return service

    return serve


@contextmanager
def silent(service: Service, number: int, beginning: bytes = b"G") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        clients = []
        for _ in range(number):
            clients.append(stack.enter_context(service.connect()))
            clients[-1].sendall(beginning)
        yield clients


@pytest.mark.parametrize("beginning", [b"", b"G", HEALTH])
def test_more_silent_clients_than_files_end_no_worker_and_others_are_answered(
    serve_with_few_files: Callable[..., Service], organization: Organization, beginning: bytes
) -> None:
    service = serve_with_few_files()
    visitor = organization.visitor()
    visitor.cases(3)
    with silent(service, 3 * FILES, beginning):
        for path, status in (("/healthz", 200), ("/readyz", 200), (visitor.path, 200)) * 5:
            answer = service.curl(path, "--header", f"Authorization: Token {organization.token}", "--max-time", "5")
            assert answer.status == status
    assert len(service.workers()) == 1
    shed = wait_for(lambda: [event for event in service.events if event["event"] == "connections_shed"], story=service)
    assert shed[0]["connections"] > 0
    assert {event["level"] for event in service.events} <= {"info", "warning"}


def test_without_any_room_for_clients_it_still_answers(
    serve_with_few_files: Callable[..., Service],
) -> None:
    """Fewer files than the least number of connections wants: accepting itself fails, again and again."""
    service = serve_with_few_files(45, CASES_THREADS="2")
    with silent(service, 100):
        for _ in range(5):
            assert service.curl("/healthz", "--max-time", "10").status == 200
    assert len(service.workers()) == 1


def test_who_has_been_silent_for_longest_goes_first(serve_with_few_files: Callable[..., Service]) -> None:
    service = serve_with_few_files()
    with silent(service, 10) as first, silent(service, FILES) as later:
        wait_for(lambda: "connections_shed" in service.log, story=service)
        assert [client.recv(1) for client in first] == [b""] * 10
        later[-1].settimeout(PATIENCE)
        later[-1].sendall(HEALTH[1:])
        assert read_answer(later[-1]).status == 200


def test_the_soft_limit_is_raised_and_a_low_hard_one_is_said_at_the_start(
    serve_with_few_files: Callable[..., Service],
) -> None:
    assert "hard limit of open files" in serve_with_few_files().log
    assert "hard limit of open files" not in serve_with_few_files(limit="-Sn").log


def test_doctor_says_where_the_limit_is_low(service_url: str) -> None:
    shell = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", COMMAND, "doctor"]
    given = environment(DATABASE_URL=service_url, CASES_SECRET_KEY=SECRET_KEY, CASES_BIND="127.0.0.1:1")
    said = subprocess.run(shell, check=False, capture_output=True, text=True, env=given).stdout
    (line,) = [line for line in said.splitlines() if "open files:" in line]
    assert line.startswith("warning")
    assert "LimitNOFILE" in line

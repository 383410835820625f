"""The service on a socket in the file system, as a proxy on the same machine uses it."""

import json
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY, Organization
from tests.process.running import COMMAND, Answer, Service, environment, parse_answer, wait_for


@pytest.fixture
def path(place: Path) -> Path:
    return place / "http.sock"


@pytest.fixture
def serve_there(start: Callable[..., Service], service_url: str, path: Path) -> Callable[..., Service]:
    """Return a function that runs `serve` on the socket."""

    def serve_there(**variables: str) -> Service:
        given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_BIND": f"unix:{path}"}
        return start(COMMAND, "serve", **given, **variables)

    return serve_there


def curl(path: Path, url_path: str, *options: str) -> Answer:
    command = ["curl", "--silent", "--include", "--unix-socket", str(path), *options, f"http://localhost{url_path}"]
    head, _, body = subprocess.run(command, check=True, capture_output=True).stdout.partition(b"\r\n\r\n")
    return parse_answer(head, body)


def wait_until_up(service: Service) -> None:
    service.wait_for_log("Booting worker")


def test_cases_are_served_to_the_group(
    serve_there: Callable[..., Service], path: Path, organization: Organization
) -> None:
    visitor = organization.visitor()
    visitor.cases(1)
    wait_until_up(serve_there())
    answer = curl(path, visitor.path, "--header", f"Authorization: Token {organization.token}")
    assert (answer.status, len(answer.json["results"])) == (200, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert curl(path, "/readyz").status == 200


def test_a_client_does_not_reach_the_operators_paths_by_its_host(
    serve_there: Callable[..., Service], path: Path
) -> None:
    service = serve_there(CASES_ADMIN_BIND="127.0.0.1:0")
    port = int(service.wait_for_log(r"Listening at: unix:[^ ,]*,http://[^ ,]*:(\d+) ")[1])
    for name in ("/metrics", "/readyz"):
        assert curl(path, name, "--header", f"Host: localhost:{port}").status == 404
        assert service.curl(name, port=port).status == 200
    assert curl(path, "/healthz").status == 200


def test_a_socket_that_a_killed_service_has_left_is_replaced(serve_there: Callable[..., Service], path: Path) -> None:
    first = serve_there()
    wait_until_up(first)
    first.end(signal.SIGKILL)
    assert path.is_socket()
    wait_until_up(serve_there())
    assert curl(path, "/healthz").status == 200


def test_a_socket_that_somebody_listens_on_is_left_alone(serve_there: Callable[..., Service], path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        service = serve_there()
        assert service.process.wait(30) == 1
        assert service.log == f"cases-service: cannot listen on unix:{path}: Address already in use\n"
    assert path.is_socket()


def test_what_is_no_socket_is_left_alone(serve_there: Callable[..., Service], path: Path) -> None:
    path.write_text("mine")
    assert serve_there().process.wait(30) == 1
    assert path.read_text() == "mine"


def test_the_doctor_asks_the_socket(serve_there: Callable[..., Service], path: Path, service_url: str) -> None:
    def doctor() -> dict[str, str]:
        given = environment(DATABASE_URL=service_url, CASES_SECRET_KEY=SECRET_KEY, CASES_BIND=f"unix:{path}")
        ran = subprocess.run([COMMAND, "doctor", "--json"], check=False, capture_output=True, env=given)
        return {found["check"]: found["message"] for found in json.loads(ran.stdout)}

    assert doctor()["/healthz"].startswith(f"nobody listens at unix:{path}")
    wait_until_up(serve_there())
    wait_for(lambda: doctor()["/readyz"] == f"200 from unix:{path}")


def test_the_demo_needs_a_port(place: Path) -> None:
    ran = subprocess.run(
        [COMMAND, "demo", "--bind", f"unix:{place}/demo"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert ran.returncode == 1
    assert re.fullmatch(r"cases-service: demo is for a browser: .*\n", ran.stderr)

"""How the service starts: with what settings, what it says then, and what ends the start."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY
from tests.process.conftest import serve_arguments
from tests.process.running import LOOPBACK, PATIENCE, Service, wait_for

WRONG_SETTINGS = [
    ("CASES_WORKERS", "many"),
    ("CASES_KEEPALIVE", "-1"),
    ("CASES_LOG_LEVEL", "loud"),
    ("CASES_SECRET_KEY", "hunter2"),
    ("CASES_SECRET_KEY_FILE", "/nowhere/hunter2"),
    ("CASES_PUBLIC_URL", "hunter2"),
    ("DATABASE_URL", "hunter2"),
    ("DATABASE_URL", "postgresql://user:100%hunter2@db/cases"),
    ("DATABASE_URL", "postgresql://user:p@hunter2@db/cases"),
    ("DATABASE_URL", "postgresql://user:hunter2/x@db/cases"),
]


def last_line(program: Service) -> str:
    """Wait for the end of a start that fails, and return the only line that it said."""
    status = program.process.wait(PATIENCE)
    (line,) = program.log.splitlines()
    assert (status, program.out) == (1, "")
    assert line.startswith("cases-service: ")
    return line


@pytest.mark.parametrize(("name", "value"), WRONG_SETTINGS)
def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(
    serve: Callable[..., Service], name: str, value: str
) -> None:
    line = last_line(serve(**{"CASES_SECRET_KEY": "", name: value}))
    assert line.startswith(f"cases-service: {name}: ")
    assert "hunter2" not in line


def test_it_ends_the_start_of_plain_gunicorn_in_the_same_way(gunicorn: Callable[..., Service]) -> None:
    line = last_line(gunicorn(CASES_SECRET_KEY="hunter2"))
    assert line.startswith("cases-service: CASES_SECRET_KEY: ")
    assert "hunter2" not in line


def test_gunicorn_without_a_database_url_says_so(gunicorn: Callable[..., Service]) -> None:
    assert last_line(gunicorn(DATABASE_URL="")).startswith("cases-service: DATABASE_URL: ")


@pytest.mark.parametrize("how", ["serve", "gunicorn"])
def test_tls_of_gunicorns_own_is_refused_in_one_line(request: pytest.FixtureRequest, how: str, place: Path) -> None:
    made = "openssl req -x509 -newkey ed25519 -nodes -subj /CN=localhost -keyout key.pem -out certificate.pem"
    subprocess.run(made.split(), cwd=place, check=True, capture_output=True)
    arguments = f"--certfile {place}/certificate.pem --keyfile {place}/key.pem"
    service = request.getfixturevalue(how)(GUNICORN_CMD_ARGS=arguments)
    assert service.process.wait(PATIENCE) == 1
    # gunicorn says that it starts before it lets anybody look at its arguments.
    _, line = service.log.splitlines()
    assert line.startswith("cases-service: gunicorn's --certfile and --keyfile: TLS ends at a proxy in front")


@pytest.mark.parametrize("how", ["serve", "gunicorn"])
def test_variables_that_are_no_settings_are_named_once(request: pytest.FixtureRequest, how: str) -> None:
    service = request.getfixturevalue(how)(CASES_TREADS="hunter2", CASES_DOKS="on")
    service.wait_until_ready()
    named = [event for event in service.events if "is not a setting" in event["event"]]
    assert [(event["event"].split()[0], event["level"]) for event in named] == [
        ("CASES_DOKS", "warning"),
        ("CASES_TREADS", "warning"),
    ]
    assert "hunter2" not in service.log


def test_a_secret_key_that_is_missing_is_warned_of(serve: Callable[..., Service]) -> None:
    service = serve(CASES_SECRET_KEY="")
    service.wait_until_ready()
    assert [event["level"] for event in service.events if "CASES_SECRET_KEY is not set" in event["event"]] == [
        "warning"
    ]


def test_gunicorn_serves_too(gunicorn: Callable[..., Service]) -> None:
    service = gunicorn()
    service.wait_until_ready()
    assert service.curl("/healthz").status == 200


def test_settings_reach_gunicorn(serve: Callable[..., Service]) -> None:
    service = serve(CASES_WORKERS="3", CASES_KEEPALIVE="0")
    service.wait_until_ready()
    assert len(service.workers()) == 3
    assert service.curl("/healthz").headers["connection"] == "close"


def test_the_address_is_a_setting_that_the_option_overrides(start: Callable[..., Service], database_url: str) -> None:
    service = start(*serve_arguments("localhost:0"), DATABASE_URL=database_url, CASES_BIND="192.0.2.1:8000")
    assert service.curl("/healthz").status == 200


def test_it_listens_on_ipv6(start: Callable[..., Service], database_url: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    service = start(*serve_arguments("[::1]:0"), DATABASE_URL=database_url)
    with socket.create_connection(("::1", service.port)) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_busy_port_is_one_line(start: Callable[..., Service], database_url: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        address = f"{LOOPBACK}:{other.getsockname()[1]}"
        line = last_line(start(*serve_arguments(address), DATABASE_URL=database_url))
    assert line == f"cases-service: cannot listen on {address}: Address already in use"


@pytest.mark.parametrize("address", ["192.0.2.1:8000", "no-such-host.invalid:8000"])
def test_an_address_that_is_not_the_machines_is_one_line(
    start: Callable[..., Service], database_url: str, address: str
) -> None:
    line = last_line(start(*serve_arguments(address), DATABASE_URL=database_url))
    assert line.startswith(f"cases-service: cannot listen on {address}: ")


def test_every_line_of_the_log_is_an_object(serve: Callable[..., Service]) -> None:
    service = serve()
    service.wait_until_ready()
    service.end()
    assert {"Starting gunicorn 27.0.1", "request"} & {event["event"] for event in service.events}
    assert all({"event", "level", "timestamp"} <= set(event) for event in service.events)
    assert service.out == ""


@pytest.mark.parametrize("bypassing", [True, False])
def test_a_role_that_row_security_does_not_bind_is_warned_of_in_one_line(
    serve: Callable[..., Service], database_url: str, bypassing: bool
) -> None:
    service = serve(CASES_WORKERS="1", **({"DATABASE_URL": database_url} if bypassing else {}))
    service.wait_until_ready()
    assert service.end() == 0
    warnings = [event for event in service.events if event["event"] == "row_security_bypassed"]
    assert [event["level"] for event in warnings] == (["warning"] if bypassing else [])


def test_a_request_is_one_line(service: Service) -> None:
    earlier = len(service.log)
    assert service.curl("/readyz").status == 200
    lines = service.log[earlier:].splitlines()
    requests = [json.loads(line) for line in lines if json.loads(line)["event"] == "request"]
    assert [(event["route"], event["status"]) for event in requests] == [("/readyz", 200)]
    assert not [line for line in lines if "pool" in line]


def test_command_lines_show_no_secret(service: Service, database_url: str) -> None:
    shown = Path(f"/proc/{service.process.pid}/cmdline")
    if not shown.exists():
        pytest.skip("there is no /proc")
    numbers = [service.process.pid, *service.workers()]
    titles = [Path(f"/proc/{number}/cmdline").read_text() for number in numbers]
    assert len(titles) == 3
    assert not [title for title in titles if database_url in title or "kkkk" in title or "a2tra" in title]


def test_not_even_the_debug_log_shows_a_secret(service: Service, database_url: str) -> None:
    assert "Current configuration" in service.log
    assert SECRET_KEY not in service.log
    assert database_url not in service.log


def test_no_control_socket_is_made(start: Callable[..., Service], place: Path, database_url: str) -> None:
    home = place / "home"
    home.mkdir()
    runtime = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(home)}
    service = start(*serve_arguments(), DATABASE_URL=database_url, **runtime)
    service.wait_until_ready()
    assert list(home.iterdir()) == []


def test_the_console_format_is_readable(serve: Callable[..., Service]) -> None:
    service = serve(CASES_LOG_FORMAT="console")
    service.wait_until_ready()
    line = wait_for(lambda: [line for line in service.log.splitlines() if "route=/readyz" in line], story=service)[0]
    assert "status=200" in line
    assert os.linesep not in line


def test_serve_takes_no_credentials_for_its_pages(serve: Callable[..., Service]) -> None:
    running = serve(DEMO_CREDENTIALS='{"api_token": "cst_forgotten", "jwt": "a.b.c"}')
    running.wait_until_ready()
    assert b"cst_forgotten" not in running.curl("/docs").body

"""Programs without a standard stream, or with one that cannot be written; and what they write there."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.factories import SECRET_KEY, Organization
from tests.process.conftest import serve_arguments
from tests.process.running import COMMAND, GUNICORN, LOOPBACK, PROJECT, Service, environment, wait_for


@pytest.fixture
def shell(database_url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command as a shell does that closes or redirects its streams."""

    def shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        given = environment(DATABASE_URL=database_url, CASES_SECRET_KEY=SECRET_KEY)
        line = ["sh", "-c", f'exec "$@" {redirection}', "sh", COMMAND, *map(str, arguments)]
        return subprocess.run(line, check=False, capture_output=True, text=True, env=given)

    return shell


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", ">&- 2>&-", "<&- >&-"])
def test_a_token_that_cannot_be_printed_is_not_made(
    shell: Shell, organization: Organization, connection: psycopg.Connection[object], redirection: str
) -> None:
    count = "select count(*) from api_tokens where organization_id = %s"
    before = connection.execute(count, [organization.id]).fetchone()
    user = organization.user()
    ran = shell(redirection, "create-token", "--organization", organization.id, "--user", user)
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == (0 if "2>&-" in redirection else 2)
    assert connection.execute(count, [organization.id]).fetchone() == before


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("command", [("create-key",), ("list-tokens",), ("list-keys", "--json")])
def test_a_command_whose_output_cannot_be_written_fails_with_a_line(
    shell: Shell, organization: Organization, redirection: str, command: tuple[str, ...]
) -> None:
    ran = shell(redirection, *command, "--organization", organization.id)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("cases-service: ")
    assert "unexpected" not in line


@pytest.mark.parametrize("command", [("load", "-"), ("check-token", "--organization", "{}")])
def test_a_command_that_reads_what_is_closed_says_so(
    shell: Shell, organization: Organization, command: tuple[str, ...]
) -> None:
    ran = shell("<&-", *(word.format(organization.id) for word in command))
    assert ran.returncode == 2
    assert "standard input is closed" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_service_without_its_streams_keeps_its_log_out_of_other_files(
    start: Callable[..., Service], service_url: str, closed: str
) -> None:
    given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_WORKERS": "1"}
    service = start("sh", "-c", f'exec "$@" {closed}', "sh", *serve_arguments(), **given)
    worker = wait_for(lambda: child_of(service.process.pid), lambda: service.process.poll() is not None)
    time.sleep(1.5)
    assert Path(f"/proc/{worker}/fd/2").readlink() == Path("/dev/null")
    assert sizes_of_deleted_files(worker) <= {0}
    assert service.end() == 0


def child_of(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def sizes_of_deleted_files(pid: int) -> set[int]:
    descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    return {file.stat().st_size for file in descriptors if str(file.readlink()).endswith("(deleted)")}


PRINTING = """
import sys, threading, warnings

class Printing:
    def close(self):
        pass

    def start_draining(self):
        return 0.0

    def __call__(self, environ, start_response):
        print("secret", file=sys.stderr)
        print("%s" % OSError(24, "Too many open files"), file=sys.stderr)
        environ["wsgi.errors"].write("secret\\n")
        warnings.warn("secret")
        thread = threading.Thread(target=lambda: {}["secret"])
        thread.start()
        thread.join()
        start_response("204 No Content", [])
        return []

app = Printing()
"""


def test_whatever_is_written_to_standard_error_is_a_structured_line(
    start: Callable[..., Service], place: Path, database_url: str
) -> None:
    (place / "printing.py").write_text(PRINTING)
    arguments = (GUNICORN, "-c", str(PROJECT / "gunicorn.conf.py"), "printing:app")
    given = {"DATABASE_URL": database_url, "CASES_BIND": f"{LOOPBACK}:0", "CASES_WORKERS": "1"}
    service = start(*arguments, **given)
    assert service.curl("/").status == 204
    service.process.send_signal(1)
    wait_for(lambda: len(service.workers()) == 2, story=service)
    assert service.curl("/").status == 204
    assert service.end() == 0
    events = [json.loads(line) for line in service.log.splitlines()]
    assert "secret" not in service.log
    assert {"error": "[Errno 24] Too many open files"}.items() <= next(
        event for event in events if event["event"] == "printed" and event["error"]
    ).items()
    assert {"python_warning", "thread_ended"} <= {event["event"] for event in events}


@pytest.mark.parametrize("how", ["environment", "option"])
def test_a_script_name_ends_the_start_with_a_line(start: Callable[..., Service], database_url: str, how: str) -> None:
    given = {"DATABASE_URL": database_url, "CASES_BIND": f"{LOOPBACK}:0"}
    given |= {"SCRIPT_NAME": "/support"} if how == "environment" else {}
    options = [] if how == "environment" else ["--env", "SCRIPT_NAME=/support"]
    service = start(GUNICORN, *options, "app:app", cwd=PROJECT, **given)
    assert service.process.wait(60) == 1
    last = service.log.splitlines()[-1]
    assert "SCRIPT_NAME" in last
    assert "CASES_PUBLIC_URL" in last
    assert "Traceback" not in service.log

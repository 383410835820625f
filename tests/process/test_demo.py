"""The demo, as a newcomer runs it: its lines work as they are pasted, and nothing of it stays."""

import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.process.embedded_data import is_down, url_of
from tests.process.running import COMMAND, LOOPBACK, PATIENCE, PROJECT, Service, environment, is_alive, wait_for


@pytest.fixture
def demo(start: Callable[..., Service]) -> Callable[..., Service]:
    def demo(*, address: str = f"{LOOPBACK}:0", **variables: str) -> Service:
        return start(COMMAND, "demo", "--bind", address, **variables)

    return demo


def lines_of(demo: Service) -> list[str]:
    """Wait for the end of what the demo prints, and return each command to paste, behind its variables."""
    wait_for(lambda: "Ctrl-C" in demo.out, lambda: demo.process.poll() is not None, demo)
    variables = "\n".join(re.findall(r"^[A-Z_]+=.*$", demo.out, re.MULTILINE))
    return [f"{variables}\n{command}" for command in re.findall(r"^curl (?:.*\\\n)+.*$", demo.out, re.MULTILINE)]


def paste(line: str, shell: str = "sh") -> dict[str, object]:
    pasted = subprocess.run([shell, "-c", line], env=environment(), check=True, capture_output=True, text=True)
    document: dict[str, object] = json.loads(pasted.stdout)
    return document


def portal_of(demo: Service) -> str:
    """Return the address of the portal, which comes before every other line to use."""
    lines_of(demo)
    found = re.search(r"^(http|curl).*$", demo.out, re.MULTILINE)
    assert found, demo.out
    return found[0]


def read(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def is_gone(url: str) -> bool:
    try:
        read(url)
    except (OSError, http.client.HTTPException):  # refused, or cut off in the middle
        return True
    return False


def status_of(line: str) -> int:
    """Return the status that a line gets, without what it does with the body."""
    curl = line.partition(" | ")[0].replace("curl -s ", "curl -s -o /dev/null -w '%{http_code}' ")
    return int(paste(curl))  # type: ignore[call-overload,no-any-return]


def assert_gone(demo: Service, data_dir: Path) -> None:
    assert is_down(data_dir)
    assert not [number for number in (demo.process.pid, *demo.workers()) if is_alive(number)]
    assert "Traceback" not in demo.log


def last_line(demo: Service) -> str:
    assert demo.process.wait(PATIENCE) == 1
    (line,) = demo.log.splitlines()
    assert demo.out == ""
    return line


def test_its_lines_show_two_pages_a_case_a_change_an_answer_and_an_error(
    demo: Callable[..., Service], place: Path
) -> None:
    running = demo()
    lines = lines_of(running)
    assert [status_of(line) for line in lines] == [200, 200, 200, 200, 201, 400]
    first, second, case, changed, _, problem = (paste(line) for line in lines)
    assert changed["subject"] == paste(lines[2])["subject"] == "Changed from a shell"
    assert changed["id"] == case["id"]
    pages = [page["results"] for page in (first, second)]
    assert [len(page) for page in pages] == [3, 3]  # type: ignore[arg-type]
    assert pages[0] != pages[1]
    assert {name: case[name] for name in pages[0][0]} == pages[0][0]  # type: ignore[index]
    assert (problem["code"], problem["status"]) == ("invalid_parameter", 400)
    assert str(place / ".cases-data") in running.out
    assert running.url("/docs") in running.out
    assert running.out.rstrip().endswith("Ctrl-C ends the service and its database.")
    running.interrupt()
    assert running.process.wait(PATIENCE) == 0
    assert_gone(running, place / ".cases-data")


def test_its_lines_are_short_and_keep_the_jwt_out_of_urls(demo: Callable[..., Service]) -> None:
    running = demo()
    lines_of(running)
    assert not re.search(r"https?://\S*eyJ", running.out)
    assert [line[:4] for line in running.out.splitlines() if len(line) > 120 and "cursor=" not in line] == ["JWT="]
    running.end()


def test_the_companys_answer_appears_in_the_portal(demo: Callable[..., Service]) -> None:
    running = demo()
    url = portal_of(running)
    said = paste(lines_of(running)[4])
    newest = json.loads(read(f"{url}api/cases/open"))["cases"][0]
    assert newest["id"] == said["case_id"]
    messages = json.loads(read(f"{url}api/cases/{newest['id']}/messages"))["messages"]
    assert (messages[-1]["text"], messages[-1]["is_unread"]) == (said["text"], True)
    assert len(messages) > 1
    running.end()


def test_its_conversations_fit_their_cases(demo: Callable[..., Service], place: Path) -> None:
    running = demo()
    lines_of(running)
    with psycopg.connect(url_of(place / ".cases-data", user="postgres")) as connection:
        (wrong,) = connection.execute(
            """
            select count(*) filter (
                where c.unread_message_count <> m.unread or c.visitor_unread_message_count <> m.unread_of_visitor
                or m.first < c.created_at or m.last > now() or m.counted <> m.messages or m.messages < 3
            )
            from cases c
            left join lateral (
                select
                    count(*) filter (where sender_type = 'visitor' and m.read_at is null) as unread,
                    count(*) filter (where sender_type = 'user' and m.read_at is null) as unread_of_visitor,
                    min(m.created_at) as first, max(m.created_at) as last, count(*) as messages,
                    max(a.message_count + a.private_message_count) as counted
                from messages m join activities a on a.id = m.activity_id
                where m.case_id = c.id
            ) m on true
            """
        ).fetchone() or (None,)
    assert wrong == 0
    running.end()


def test_its_newest_case_is_of_today_and_none_is_ahead(demo: Callable[..., Service], place: Path) -> None:
    running = demo()
    lines_of(running)
    with psycopg.connect(url_of(place / ".cases-data", user="postgres")) as connection:
        newest, latest, ahead = connection.execute(
            "select max(created_at), max(updated_at), count(*) filter (where updated_at > now()) from cases"
        ).fetchone() or (None, None, None)
    assert newest.astimezone(UTC).date() == latest.astimezone(UTC).date() == datetime.now(UTC).date()
    assert ahead == 0
    running.end()


def test_it_says_what_it_does_while_it_starts(demo: Callable[..., Service], place: Path) -> None:
    running = demo()
    lines_of(running)
    said = [line for line in running.log.splitlines() if line.endswith(" ...")]
    assert [line.split()[1] for line in said] == ["making", "loading", "starting"]
    assert str(place / ".cases-data") in said[0]
    running.end()


def test_its_address_leads_to_the_page_that_tries_the_api(demo: Callable[..., Service]) -> None:
    running = demo()
    lines_of(running)
    assert "swagger" in read(running.url("/"))
    running.end()


def test_without_a_postgresql_nothing_is_made(demo: Callable[..., Service], place: Path) -> None:
    (place / "empty").mkdir()
    line = last_line(demo(CASES_POSTGRES_BIN=str(place / "empty")))
    assert line == f"cases-service: {place}/empty has no program postgres that may be run"
    assert not (place / ".cases-data").exists()


def test_its_portal_shows_visitors_with_open_and_closed_cases(demo: Callable[..., Service]) -> None:
    running = demo()
    url = portal_of(running)
    choices = re.findall(r"ZIP (\d+) \S (\d+) open, (\d+) closed", read(url))
    assert len(choices) == len(set(choices)) == 6
    _, opened, closed = map(int, choices[0])
    assert min(opened, closed) > 1
    summary = json.loads(read(f"{url}api/summary"))
    assert (summary["total"], summary["by_status"]["Closed"]) == (opened + closed, closed)
    assert len(json.loads(read(f"{url}api/cases/open"))["cases"]) == opened
    running.interrupt()
    assert running.process.wait(PATIENCE) == 0
    wait_for(lambda: is_gone(url), story=running)
    assert "Traceback" not in running.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_portal_ends_with_it(demo: Callable[..., Service], place: Path, number: signal.Signals) -> None:
    running = demo()
    url = portal_of(running)
    assert not is_gone(url)
    running.end(number)
    wait_for(lambda: is_gone(url) and is_down(place / ".cases-data"), story=running)


def test_its_portal_takes_another_port_where_its_own_is_busy(demo: Callable[..., Service]) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        busy = other.getsockname()[1]
        running = demo(address=f"{LOOPBACK}:{busy - 100}")
        url = portal_of(running)
        assert f":{busy}/" not in url
        assert "Your cases" in read(url)


def test_sigterm_ends_it_and_a_second_time_works_on_the_data_of_the_first(
    demo: Callable[..., Service], place: Path
) -> None:
    first = demo()
    old = lines_of(first)
    assert first.end(signal.SIGTERM) == 0
    assert_gone(first, place / ".cases-data")
    second = demo(address=f"{LOOPBACK}:{first.port}")
    new = lines_of(second)
    assert status_of(new[0]) == 200
    assert status_of(old[0]) == 401
    assert _kid(old[0]) == _kid(new[0])
    second.end()


def _kid(line: str) -> str:
    """Return the part of the JWT that names the key: its header."""
    return line.partition("JWT=")[2].partition(".")[0]


def test_after_a_kill_it_starts_again_on_the_same_port(demo: Callable[..., Service], place: Path) -> None:
    first = demo()
    lines_of(first)
    first.end(signal.SIGKILL)
    second = demo(address=f"{LOOPBACK}:{first.port}")
    assert status_of(lines_of(second)[0]) == 200
    assert not [number for number in first.processes() if is_alive(number)]
    second.end()
    assert_gone(second, place / ".cases-data")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_it_ends_with_a_make_that_is_killed(start: Callable[..., Service], place: Path) -> None:
    (place / "Makefile").write_text(f"demo:\n\t{COMMAND} demo --bind {LOOPBACK}:0\n")
    make = start("make", "demo")
    lines_of(make)
    processes = make.processes()
    make.end(signal.SIGKILL)
    wait_for(lambda: is_down(place / ".cases-data") and not any(map(is_alive, processes)))


def test_a_kill_during_the_preparation_does_not_spoil_the_directory(demo: Callable[..., Service], place: Path) -> None:
    first = demo()
    wait_for((place / ".cases-data" / "users.lock").exists)
    first.end(signal.SIGKILL)
    assert status_of(lines_of(demo())[0]) == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_preparation_ends_it(
    demo: Callable[..., Service], place: Path, number: signal.Signals
) -> None:
    running = demo()
    wait_for((place / ".cases-data" / "postgres").exists, story=running)
    running.process.send_signal(number)
    assert running.process.wait(PATIENCE) in (0, 128 + number)
    assert_gone(running, place / ".cases-data")


def test_two_run_side_by_side(demo: Callable[..., Service], place: Path) -> None:
    data_dirs = [place / "one", place / "two"]
    both = [demo(CASES_DATA_DIR=str(data_dir)) for data_dir in data_dirs]
    assert [status_of(lines_of(running)[1]) for running in both] == [200, 200]
    for running, data_dir in zip(both, data_dirs, strict=True):
        running.end()
        assert_gone(running, data_dir)


def test_it_refuses_a_database_url(demo: Callable[..., Service], place: Path) -> None:
    line = last_line(demo(DATABASE_URL="host=/nowhere"))
    assert line.startswith("cases-service: demo brings its own PostgreSQL: unset DATABASE_URL")
    assert not (place / ".cases-data").exists()


def test_it_refuses_a_directory_that_no_demo_made(demo: Callable[..., Service], data_dir: Path, place: Path) -> None:
    foreign = place / "foreign"
    foreign.mkdir()
    (foreign / "file").touch()
    for directory in (data_dir, foreign):
        before = sorted(directory.iterdir())
        line = last_line(demo(CASES_DATA_DIR=str(directory)))
        assert line.startswith(f"cases-service: {directory} was not made by a demo: set CASES_DATA_DIR")
        assert sorted(directory.iterdir()) == before


def test_a_busy_port_is_one_line_and_leaves_nothing(demo: Callable[..., Service], place: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        line = last_line(demo(address=f"{LOOPBACK}:{other.getsockname()[1]}"))
    assert "Address already in use" in line
    assert not (place / ".cases-data").exists()


def test_its_lines_work_whatever_the_environment_says(demo: Callable[..., Service]) -> None:
    settings = {
        "CASES_JWT_AUDIENCE": "cases",
        "CASES_JWT_ISSUER": "https://issuer.example",
        "CASES_JWT_MAX_TTL": "600",
        "CASES_ALLOWED_HOSTS": "cases.example",
        "CASES_PUBLIC_URL": "https://cases.example",
        "http_proxy": "http://192.0.2.1:9",
    }
    running = demo(address="0.0.0.0:0", **settings)
    assert [status_of(line) for line in lines_of(running)] == [200, 200, 200, 200, 201, 400]
    assert json.loads(read(f"{portal_of(running)}api/summary"))["total"] > 0
    running.end()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_an_ordinary_user_can_run_it(start: Callable[..., Service], place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = place / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    place.chmod(0o755)
    become = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    imports = os.pathsep.join(str(path) for path in (PROJECT, Path(psycopg.__file__).parents[1]))
    given = {"PYTHONPATH": imports, "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        script = "import gunicorn, psycopg, subprocess, sys; subprocess.check_call([sys.executable, '--version'])"
        tried = [*become, python, "-c", script]
        if subprocess.run(tried, env=environment(**given), cwd="/", capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("there is no Python that an ordinary user may run")
    demo = start(*become, python, "-m", "cases_service", "demo", "--bind", f"{LOOPBACK}:0", cwd=home, **given)
    assert [status_of(line) for line in lines_of(demo)] == [200, 200, 200, 200, 201, 400]
    assert {path.stat().st_uid for path in (home / ".cases-data").iterdir()} == {nobody.pw_uid}
    demo.interrupt()
    assert demo.process.wait(PATIENCE) == 0
    assert_gone(demo, home / ".cases-data")

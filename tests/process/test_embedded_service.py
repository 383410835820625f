"""`serve` on the embedded server, and the commands beside it."""

import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg

from cases_service.embedded.server import join
from tests.factories import SECRET_KEY, cases_path
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, is_down, stop, url_of
from tests.process.running import COMMAND, Service, environment, is_alive, wait_for


def command(data_dir: Path, *arguments: str) -> str:
    """Run a command on a data directory, and return what it prints."""
    given = environment(CASES_DATA_DIR=str(data_dir), CASES_SECRET_KEY=SECRET_KEY)
    return subprocess.run(
        [COMMAND, *arguments], env=given, check=True, capture_output=True, text=True, cwd=data_dir.parent
    ).stdout.strip()


def serve(start: Callable[..., Service], data_dir: Path, **variables: str) -> Service:
    given = {"CASES_DATA_DIR": str(data_dir), "CASES_SECRET_KEY": SECRET_KEY}
    return start(*serve_arguments(), **(given | variables))


def test_serve_makes_its_own_database_where_there_is_none(start: Callable[..., Service], place: Path) -> None:
    service = start(*serve_arguments())
    service.wait_until_ready()
    data_dir = place / ".cases-data"
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "secret.key").stat().st_mode) == 0o600
    assert service.end() == 0
    assert is_down(data_dir)


def test_commands_beside_it_use_its_server(start: Callable[..., Service], template: Template, data_dir: Path) -> None:
    service = serve(start, data_dir)
    service.wait_until_ready()
    organization = ("--organization", template.organization_id)
    token = command(data_dir, "create-token", *organization, "--user", template.user_id)
    command(data_dir, "create-key", *organization)
    jwt = command(data_dir, "sign", *organization, "--external-id", template.external_id)
    header = f"Authorization: Bearer {token}"
    answer = service.curl(cases_path(template.organization_id, jwt), "--header", header)
    assert (answer.status, len(answer.json["results"])) == (200, 3)
    assert command(data_dir, "check-token", *organization, jwt).split()[-2:] == ["answer", "200"]
    service.end()
    assert is_down(data_dir)


def test_the_service_logs_in_as_a_role_that_row_security_binds(
    start: Callable[..., Service], template: Template, data_dir: Path
) -> None:
    """Also in a data directory that was made before there was such a role."""
    server = join(data_dir, settings=FAST)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        connection.execute("drop owned by cases_service")
        connection.execute("drop role cases_service")
    stop(server)
    service = serve(start, data_dir)
    service.wait_until_ready()
    assert service.curl(template.path, "--header", template.header).status == 200
    with psycopg.connect(url_of(data_dir, user="postgres")) as connection:
        users = connection.execute(
            "select distinct usename from pg_stat_activity where application_name = 'cases-service'"
        ).fetchall()
    assert sorted(users) == [("cases_service",), ("cases_writer",)]
    service.end()
    assert "row_security_bypassed" not in service.log


def test_the_last_user_stops_the_server(start: Callable[..., Service], data_dir: Path) -> None:
    first, second = serve(start, data_dir), serve(start, data_dir)
    for service in (first, second):
        service.wait_until_ready()
    assert first.end() == 0
    assert second.curl("/readyz").status == 200
    assert second.end() == 0
    assert is_down(data_dir)


def test_after_a_kill_nothing_is_left_and_the_next_start_recovers(
    start: Callable[..., Service], template: Template, data_dir: Path
) -> None:
    service = serve(start, data_dir)
    service.wait_until_ready()
    workers = service.workers()
    service.end(signal.SIGKILL)
    wait_for(lambda: is_down(data_dir) and not any(is_alive(worker) for worker in workers), seconds=10)
    again = serve(start, data_dir)
    assert again.curl(template.path, "--header", template.header).status == 200
    assert again.end() == 0


def test_an_interrupt_of_the_whole_group_leaves_nothing(start: Callable[..., Service], data_dir: Path) -> None:
    service = serve(start, data_dir)
    service.wait_until_ready()
    workers = service.workers()
    service.interrupt()
    assert service.process.wait(20) == 0
    assert is_down(data_dir)
    assert not [worker for worker in workers if is_alive(worker)]
    assert "Traceback" not in service.log

"""`load` killed, cut off and run twice at once: all of the file is there or nothing, and a repetition succeeds.

The disk that is full under it is one of the faults of the database.
"""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.process.running import COMMAND, PATIENCE, Service, wait_for
from tests.torture import times

VISITORS = 6_000
MOMENTS = times(2, torture=60)


class Export:
    """A file that describes an organization with its visitors, and how many of its rows are in the database."""

    def __init__(self, place: Path, connection: psycopg.Connection) -> None:
        self.organization_id = str(uuid4())
        self.name = f"load-{self.organization_id[:8]}"
        self.path = place / f"{self.name}.ndjson"
        self._connection = connection
        organization = {"id": self.organization_id, "name": "Acme", "subscription_status": "active"}
        lines = [{"type": "organization", **organization}] + [self._visitor(number) for number in range(VISITORS)]
        self.path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def _visitor(self, number: int) -> dict[str, str]:
        given = {"id": str(uuid4()), "organization_id": self.organization_id, "external_id": f"visitor {number}"}
        return {"type": "visitor", **given}

    def backends(self) -> list[int]:
        statement = "select pid from pg_stat_activity where application_name = %s"
        return [pid for (pid,) in self._connection.execute(statement, [self.name]).fetchall()]

    def rows(self) -> int:
        """Count, once the server has noticed how its client ended."""
        wait_for(lambda: not self.backends(), seconds=PATIENCE)
        statement = "select count(*) from visitors where organization_id = %s"
        found = self._connection.execute(statement, [self.organization_id]).fetchone()
        assert found
        return int(found[0])


@pytest.fixture
def export(place: Path, connection: psycopg.Connection) -> Export:
    return Export(place, connection)


@pytest.fixture
def load(start: Callable[..., Service], export: Export, database_url: str) -> Callable[[], Service]:
    """Return a function that starts to load the file."""
    url = make_conninfo(database_url, application_name=export.name)
    return lambda: start(COMMAND, "load", str(export.path), DATABASE_URL=url)


def end_of(program: Service) -> int:
    return program.process.wait(PATIENCE)


def disturb(how: str, program: Service, export: Export, connection: psycopg.Connection) -> None:
    if how == "kill":
        program.process.kill()
        end_of(program)
        return
    for backend in export.backends():
        connection.execute("select pg_terminate_backend(%s)", [backend])
    assert end_of(program) in (0, 75)
    assert program.log.count("\n") == (program.process.returncode == 75), program
    assert "Traceback" not in program.log


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_whenever_it_is_disturbed_all_is_there_or_nothing(
    how: str, load: Callable[[], Service], export: Export, connection: psycopg.Connection
) -> None:
    seen = set()
    for number in range(MOMENTS):
        program = load()
        wait_for(export.backends, story=program)
        # From its first statement on, up to about its last.
        time.sleep(random.uniform(0, 0.4) if number else 0)  # noqa: S311
        disturb(how, program, export, connection)
        assert export.rows() in (0, VISITORS)
        seen.add(export.rows())
        connection.execute("delete from visitors where organization_id = %s", [export.organization_id])
    assert 0 in seen, "it was never disturbed in time"
    again = load()
    assert end_of(again) == 0, again
    assert export.rows() == VISITORS


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_disturbed_as_it_writes_it_leaves_nothing(
    how: str, load: Callable[[], Service], export: Export, connection: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as blocking:
        # It can stage its lines, and waits with all of them as it begins to write.
        blocking.execute("lock table visitors in share mode")
        program = load()
        waits = "select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
        wait_for(lambda: connection.execute(waits, [export.name]).fetchone() is not None, story=program, seconds=30)
        disturb(how, program, export, connection)
    assert program.process.returncode == (-signal.SIGKILL if how == "kill" else 1)
    assert export.rows() == 0
    assert end_of(load()) == 0
    assert export.rows() == VISITORS


def test_run_twice_at_once_both_succeed(load: Callable[[], Service], export: Export) -> None:
    for _ in range(times(1, torture=10)):
        programs = [load(), load()]
        assert [end_of(program) for program in programs] == [0, 0]
        assert export.rows() == VISITORS

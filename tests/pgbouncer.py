"""A real PgBouncer in transaction mode, with the configuration that deploy/ has, in front of the tests' database."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import pytest
from psycopg.conninfo import conninfo_to_dict

from cases_service.settings import Settings
from tests.process.running import wait_for

CONFIGURATION = (Path(__file__).parents[1] / "deploy/pgbouncer.ini").read_text()
PROGRAM = os.environ.get("CASES_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
# It refuses to run as root. In a namespace of its own it is somebody else who has root's files.
AS_SOMEBODY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


SECONDS = 0.5
"""How long a statement may take, where a test says nothing else."""


def version() -> tuple[int, ...]:
    """Return the version of PgBouncer, or nothing where it cannot run."""
    if PROGRAM is None:
        return ()
    answer = subprocess.run([*AS_SOMEBODY, PROGRAM, "--version"], check=False, capture_output=True, text=True)
    return tuple(int(part) for part in re.findall(r"\d+", answer.stdout.partition("\n")[0]))


VERSION = version()
PREPARES = VERSION >= (1, 21)
needs_pgbouncer = pytest.mark.skipif(not VERSION, reason="there is no pgbouncer that can be run")


class PgBouncer:
    """A PgBouncer that can be stopped and started again, in front of a database."""

    def __init__(self, directory: Path, configuration: str) -> None:
        self.url = f"host={directory} port=6432 user=postgres dbname=cases"
        self.writer_url = f"{self.url}_for_writer"
        self._socket = f"{directory}/.s.PGSQL.6432"
        self._log = directory / "log"
        self._file = directory / "pgbouncer.ini"
        self._file.write_text(configuration)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert PROGRAM
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*AS_SOMEBODY, PROGRAM, str(self._file)], stdout=log, stderr=log)
        wait_for(self._accepts, lambda: self._process is None or self._process.poll() is not None, self)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self._socket) == 0

    def __str__(self) -> str:
        return self._log.read_text()


def entry(name: str, url: str, line: str) -> str:
    """Return the line of a database as deploy/ has it, under a name of its own and for the role of a URL."""
    server = conninfo_to_dict(url)
    place = " ".join(f"{key}={server[key]}" for key in ("host", "port", "user", "password", "dbname") if key in server)
    text, replaced = re.subn("^cases = host=db.internal port=5432 dbname=cases", f"{name} = {place}", line)
    assert replaced == 1
    return text


def configuration(service_url: str, writer_url: str, directory: Path, seconds: float) -> str:
    """Return the configuration of deploy/ for a test: other databases, a socket for a port, and time-outs.

    As PgBouncer believes who comes without a password, each role has a database of its own that leads to the same one.
    """
    line = next(line for line in CONFIGURATION.splitlines() if line.startswith("cases = "))
    lines = [entry(name, url, line) for name, url in (("cases", service_url), ("cases_for_writer", writer_url))]
    text = CONFIGURATION.replace(line, "\n".join(lines))
    text = text.replace("lock_timeout to 2500", f"lock_timeout to {seconds * 500:.0f}")
    text = text.replace("statement_timeout to 5000", f"statement_timeout to {seconds * 1000:.0f}")
    text = text if PREPARES else text.replace("max_prepared_statements", ";")
    # Fewer connections than the service has, so that they change hands.
    changes = {"listen_addr": "", "unix_socket_dir": directory, "auth_type": "any", "default_pool_size": 2}
    return text + "".join(f"{name} = {value}\n" for name, value in changes.items())


@pytest.fixture
def make_pgbouncer(service_url: str, writer_url: str) -> Iterator[Callable[..., PgBouncer]]:
    """Return a function that starts a PgBouncer with a change to its configuration."""
    directory = Path(mkdtemp(prefix="cases-", dir="/tmp"))
    started: list[PgBouncer] = []

    def make(old: str = "", new: str = "", *, seconds: float = SECONDS) -> PgBouncer:
        text = configuration(service_url, writer_url, directory, seconds)
        started.append(PgBouncer(directory, text.replace(old, new)))
        started[-1].start()
        return started[-1]

    yield make
    for pgbouncer in started:
        pgbouncer.stop()
    shutil.rmtree(directory)


def behind(pgbouncer: PgBouncer, settings: Settings, *, seconds: float = SECONDS) -> Settings:
    """Return the settings of a service that reads and writes through a PgBouncer of the same time-outs."""
    return msgspec.structs.replace(
        settings,
        database_url=pgbouncer.url,
        write_database_url=pgbouncer.writer_url,
        statement_timeout=seconds,
        prepared_statements=PREPARES,
    )

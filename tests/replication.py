"""A primary and a streaming replica of it, made from the embedded programs."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

import psycopg

from cases_service.embedded import supervisor
from cases_service.embedded.server import EmbeddedServer, _find_programs, join
from tests.process.embedded_data import FAST, url_of
from tests.process.running import wait_for

# It decides conflicts with reads at once, and looks for its primary ten times a second.
_IMPATIENT = {"max_standby_streaming_delay": "0", "wal_retrieve_retry_interval": "100ms"}
PROGRAMS = _find_programs(None)


@contextmanager
def data_directory() -> Iterator[Path]:
    """Lend a directory that a server may use whatever rights it runs with."""
    path = Path(mkdtemp(prefix="cases-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def primary_server() -> Iterator[EmbeddedServer]:
    with data_directory() as data_dir, join(data_dir, settings=FAST) as server:
        yield server
        server.leave()
        assert server.wait_stopped(20)


class ReplicaServer:
    """A streaming replica that can be stopped and started again; what it reads is in `url`."""

    def __init__(self, primary: EmbeddedServer, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.url = url_of(data_dir, user=supervisor.SUPERUSER)
        self._lock: int | None = None
        cluster = str(data_dir / supervisor.CLUSTER)
        copy = [str(PROGRAMS / "pg_basebackup"), "--dbname", primary.conninfo, "--pgdata", cluster]
        subprocess.run([*copy, "--checkpoint=fast", "--write-recovery-conf", "--no-sync"], check=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it can be read. `join` would wait for a server that is no replica."""
        self._lock = supervisor.open_lock(self.data_dir / supervisor.USERS_LOCK)
        assert supervisor.try_lock(self._lock, fcntl.LOCK_SH)
        settings = [f"{name}={value}" for name, value in {**FAST, **_IMPATIENT}.items()]
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(self.data_dir), str(PROGRAMS), *settings]
        subprocess.run(command, check=True, start_new_session=True)
        wait_for(self._can_be_read)

    def stop(self) -> None:
        """Stop it, if it runs, and wait for its end."""
        if self._lock is not None:
            server, self._lock = EmbeddedServer(self.data_dir, self.url, self._lock), None
            server.leave()
            assert server.wait_stopped(20)

    def execute(self, statement: str) -> None:
        """Run a statement of the operator."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold up what it replays."""
        self.execute("select pg_wal_replay_pause()")
        try:
            yield
        finally:
            # What it goes on to replay may end the very statement that says so.
            with suppress(psycopg.errors.SerializationFailure):
                self.execute("select pg_wal_replay_resume()")

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Part it from its primary."""
        configuration = self.data_dir / supervisor.CLUSTER / "postgresql.auto.conf"
        before = configuration.read_text()
        configuration.write_text(before + "primary_conninfo = 'host=/nowhere'\n")
        try:
            self.execute("select pg_reload_conf()")
            yield
        finally:
            configuration.write_text(before)
            self.execute("select pg_reload_conf()")

    def _can_be_read(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url).close()
            return True
        return False


@contextmanager
def replica_server(primary: EmbeddedServer) -> Iterator[ReplicaServer]:
    with data_directory() as data_dir, ReplicaServer(primary, data_dir) as replica:
        yield replica

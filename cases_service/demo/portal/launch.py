"""Starts the portal's process, passes it its plan, and makes it end with the demo."""

import fcntl
import socket
import subprocess
import sys
from typing import IO, Final

import msgspec

from cases_service.server.launch import ListenError, listen

_PORTS_FURTHER: Final = 100
_LAST_PORT: Final = 65535
_LOWEST_DESCRIPTOR: Final = 10  # above the one that gunicorn's socket takes


class DemoVisitor(msgspec.Struct, frozen=True):
    """A visitor to sign in as, and the number of contacts and cases."""

    external_id: str
    contacts: int
    open_cases: int
    closed_cases: int


class Plan(msgspec.Struct, frozen=True):
    """The portal's input: the arguments of its CasesService, its allowed hosts, and the visitors to choose from."""

    service: dict[str, str | int | None]
    hosts: list[str]
    visitors: list[DemoVisitor]


def listen_beside(address: str) -> socket.socket:
    """Return a socket that listens a hundred ports higher, or on any port if that one is taken."""
    host, _, port = address.rpartition(":")
    further = int(port) + _PORTS_FURTHER
    if int(port) == 0 or further > _LAST_PORT:
        return listen(f"{host}:0")
    try:
        return listen(f"{host}:{further}")
    except ListenError:
        return listen(f"{host}:0")


def start_portal(plan: Plan, listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the portal on this socket. It ends when its standard input ends.

    The input brings the plan, so that no secret is on the command line or in the environment, and then stays open.
    However the processes at its other end stop, the kernel closes it.
    """
    # A session of its own: Ctrl-C in the terminal reaches only the demo, and ends the portal through it.
    portal = subprocess.Popen(  # noqa: S603  this interpreter
        [sys.executable, "-P", "-m", "cases_service.demo.portal", str(listener.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    listener.close()
    input_of(portal).write(msgspec.json.encode(plan) + b"\n")
    input_of(portal).flush()
    return portal


def hand_over(portal: subprocess.Popen[bytes]) -> None:
    """Keep the other end open across `exec`; gunicorn also reaps children that it has not started."""
    fcntl.fcntl(input_of(portal), fcntl.F_DUPFD, _LOWEST_DESCRIPTOR)


def input_of(portal: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return this process's end of the portal's standard input."""
    if portal.stdin is None:
        raise ValueError("standard input is not a pipe")
    return portal.stdin

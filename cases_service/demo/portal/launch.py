"""Starts the portal's process, tells it what it has to know, and lets it end with the demo."""

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
    """A visitor to be signed in as, and how much there is to see."""

    external_id: str
    contacts: int
    open_cases: int
    closed_cases: int


class Plan(msgspec.Struct, frozen=True):
    """What the portal is told: the arguments of its CasesService, the hosts it may be asked as, whom to show."""

    service: dict[str, str | int | None]
    hosts: list[str]
    visitors: list[DemoVisitor]


def listen_beside(address: str) -> socket.socket:
    """Return a socket that listens a hundred ports further on, or on any port where that is not to be had."""
    host, _, port = address.rpartition(":")
    further = int(port) + _PORTS_FURTHER
    if int(port) == 0 or further > _LAST_PORT:
        return listen(f"{host}:0")
    try:
        return listen(f"{host}:{further}")
    except ListenError:
        return listen(f"{host}:0")


def start_portal(plan: Plan, listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start the portal on this socket. It ends when its standard input does.

    That input brings the plan, so that no secret is on the command line or in the environment, and stays open; the
    kernel closes it however those that hold its other end come to theirs.
    """
    # A session of its own: Ctrl-C in the terminal reaches the demo alone, and the portal by way of it.
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
    """Let the program that this one becomes hold the other end; gunicorn reaps what it has not started, too."""
    fcntl.fcntl(input_of(portal), fcntl.F_DUPFD, _LOWEST_DESCRIPTOR)


def input_of(portal: subprocess.Popen[bytes]) -> IO[bytes]:
    """Return the end of its standard input that is held here."""
    if portal.stdin is None:
        raise ValueError("standard input is not a pipe")
    return portal.stdin

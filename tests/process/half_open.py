"""A network of its own for the service, in which the packets between it and the database can be dropped."""

import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Network:
    """Two lines into a network namespace: for clients to the service, and for the service to the database."""

    name: str
    service_host: str
    database_host: str
    database_port: int

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that is to run in there."""
        return ["ip", "netns", "exec", self.name]

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Drop what the service and the database send each other. Nobody hears of it."""
        rules = (
            ["OUTPUT", "--protocol", "tcp", "--dport", str(self.database_port), "--jump", "DROP"],
            ["INPUT", "--protocol", "tcp", "--sport", str(self.database_port), "--jump", "DROP"],
        )
        for rule in rules:
            run(*self.prefix, "iptables", "--append", *rule)
        yield
        for rule in rules:
            run(*self.prefix, "iptables", "--delete", *rule)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@contextmanager
def network(database_socket: Path) -> Iterator[Network]:
    """Make the network, or skip the test where that is not permitted; the database is reached through a socket."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("iptables"):
        pytest.skip("needs root, ip and iptables, to drop packets in a network namespace")
    name, third = f"cases-{secrets.token_hex(4)}", secrets.randbelow(250)
    lines = [
        (f"{name[:12]}{letter}", f"198.18.{third}.{4 * i + 1}", f"198.18.{third}.{4 * i + 2}")
        for i, letter in enumerate("ab")
    ]
    try:
        run("ip", "netns", "add", name)
        for line, ours, theirs in lines:
            run("ip", "link", "add", line, "type", "veth", "peer", "name", f"{line}p", "netns", name)
            run("ip", "address", "add", f"{ours}/30", "dev", line)
            run("ip", "link", "set", line, "up")
            run("ip", "-n", name, "address", "add", f"{theirs}/30", "dev", f"{line}p")
            run("ip", "-n", name, "link", "set", f"{line}p", "up")
        run("ip", "netns", "exec", name, "iptables", "--list")
    except subprocess.CalledProcessError as error:
        remove(name, [line for line, _, _ in lines])
        pytest.skip(f"no network namespace with a packet filter is to be had: {error.stderr.decode().strip()}")
    try:
        with relay(lines[0][1], database_socket) as port:
            yield Network(name, lines[1][2], lines[0][1], port)
    finally:
        remove(name, [line for line, _, _ in lines])


def remove(name: str, lines: list[str]) -> None:
    for command in [["ip", "link", "delete", line] for line in lines] + [["ip", "netns", "delete", name]]:
        subprocess.run(command, check=False, capture_output=True, timeout=20)


@contextmanager
def relay(host: str, database_socket: Path) -> Iterator[int]:
    """Lend the port of a relay to the database, which itself listens on no network."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(database_socket))
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server((host, 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()

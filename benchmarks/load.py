"""Asks for pages over keep-alive connections: in one thread, over raw sockets, closed loop or at a fixed rate.

Why not wrk: it does not come with pip. Why not an HTTP client: each of those costs more per request than the service.
Here a request is bytes made beforehand, and of an answer only the status and the length are read, which is some
50 microseconds. The share of a core that the generator itself takes is measured with every load.

At a fixed rate (an open loop) requests are due at even intervals, whatever becomes of the earlier ones, and latency
counts from the moment when a request was due, so that a server that falls behind cannot hide it (coordinated
omission; the way of wrk2).
"""

import gc
import re
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_BUFFER: Final = 262_144
_NOT_MODIFIED: Final = 304


class NoAnswerError(Exception):
    """A server closed the connection, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request."""

    status: int
    head: bytes
    body: bytes
    seconds: float


@dataclass(slots=True)
class Loaded:
    """What came of a load. `latencies` are seconds of the right answers; `errors` all other ones."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    generator: float = 0.0

    def add(self, other: Self) -> None:
        """Take in what came of another load, as if the two had been one."""
        seconds = self.seconds + other.seconds
        self.generator = (self.generator * self.seconds + other.generator * other.seconds) / seconds
        self.seconds = seconds
        self.latencies += other.latencies
        self.errors += other.errors

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float | None:
        """Return the latency in seconds that so many percent of the answers did not exceed; None without answers."""
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


class Client:
    """One keep-alive connection, with at most one request under way."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.started = 0.0
        self.status = 0
        self._head = b""
        self._missing = -1
        self._body: list[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def is_open(self) -> bool:
        """Whether the next request can be sent on it."""
        return self.socket.fileno() >= 0

    @property
    def local_port(self) -> int:
        """The port by which the server knows this connection."""
        port: int = self.socket.getsockname()[1]
        return port

    def send(self, request: bytes, *, due: float | None = None) -> None:
        """Send a request, which is small enough to fit into the socket's buffer. Latency counts from `due`, or now."""
        self._head, self._missing, self.status = b"", -1, 0
        self.started = time.perf_counter() if due is None else due
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has arrived, and return whether the answer is complete."""
        data = self.socket.recv(_BUFFER)
        if not data:
            raise NoAnswerError("the connection was closed")
        if self._missing < 0:
            data = self._read_head(data)
        if self._missing >= 0:
            self._missing -= len(data)
            if self._body is not None:
                self._body.append(data)
        return self._missing == 0

    def _read_head(self, data: bytes) -> bytes:
        """Read status and length, where the whole head is here, and return what is behind it."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        body, self._head = self._head[end + 4 :], self._head[:end]
        self.status = int(self._head[9:12])
        length = _LENGTH.search(self._head)
        if length is None and self.status != _NOT_MODIFIED:
            raise NoAnswerError("an answer without Content-Length")
        self._missing = 0 if length is None or self.status == _NOT_MODIFIED else int(length[1])
        return body

    def ask(self, request: bytes, *, timeout: float = 60.0) -> Answer:
        """Send a request, wait for the whole answer and return it."""
        self._body = []
        deadline = time.perf_counter() + timeout
        try:
            self.send(request)
            complete = False
            while not complete:
                self.socket.settimeout(max(deadline - time.perf_counter(), 0.001))
                complete = self.receive()
            seconds = time.perf_counter() - self.started
            return Answer(self.status, self._head, b"".join(self._body), seconds)
        except OSError as error:
            raise NoAnswerError(str(error)) from None
        finally:
            self._body = None


def closed_loop(clients: Sequence[Client], requests: Sequence[bytes], *, seconds: float, status: int = 200) -> Loaded:
    """Keep every connection busy for so long: the best throughput."""
    return _Loop(clients, requests, status).run(seconds, rate=None)


def open_loop(
    clients: Sequence[Client], requests: Sequence[bytes], *, seconds: float, rate: float, status: int = 200
) -> Loaded:
    """Send so many requests a second for so long, on whichever connection is free."""
    return _Loop(clients, requests, status).run(seconds, rate=rate)


class _Loop:
    """One load: which connections are busy, which request is next, what came back."""

    def __init__(self, clients: Sequence[Client], requests: Sequence[bytes], status: int) -> None:
        self.requests = requests
        self.status = status
        self.next = 0
        self.idle = deque(client for client in clients if client.is_open)
        self.busy: dict[int, Client] = {}
        self.loaded = Loaded(0.0)

    def run(self, seconds: float, *, rate: float | None) -> Loaded:
        gc.collect()
        gc.disable()
        cpu, started = time.process_time(), time.perf_counter()
        try:
            self._send_until(started, started + seconds, rate)
            self.loaded.seconds = time.perf_counter() - started
            self.loaded.generator = (time.process_time() - cpu) / self.loaded.seconds
            in_time = len(self.loaded.latencies)
            self._drain(grace=10.0)
            if rate is None:
                del self.loaded.latencies[in_time:]
        finally:
            gc.enable()
        return self.loaded

    def _send_until(self, started: float, end: float, rate: float | None) -> None:
        now = started
        while now < end:
            wait = end - now
            if rate is None:
                while self.idle:
                    self._send(due=None)
            else:
                due = started + self.next / rate
                while self.idle and due <= now:
                    self._send(due=due)
                    due = started + self.next / rate
                if self.idle:
                    wait = min(wait, max(due - now, 0.0))
            if not self.idle and not self.busy:
                raise NoAnswerError("no connection is left")
            self._receive(wait)
            now = time.perf_counter()

    def _send(self, due: float | None) -> None:
        client = self.idle.popleft()
        client.send(self.requests[self.next % len(self.requests)], due=due)
        self.next += 1
        self.busy[client.socket.fileno()] = client

    def _receive(self, wait: float) -> None:
        # select() waits to the microsecond, where epoll rounds to milliseconds.
        for number in select.select(list(self.busy), [], [], wait)[0]:
            client = self.busy[number]
            try:
                complete = client.receive()
            except (OSError, NoAnswerError):
                self.loaded.errors += 1
                self.busy.pop(number).socket.close()
                continue
            if complete:
                del self.busy[number]
                self.idle.append(client)
                self._count(client)

    def _count(self, client: Client) -> None:
        if client.status == self.status:
            self.loaded.latencies.append(time.perf_counter() - client.started)
        else:
            self.loaded.errors += 1

    def _drain(self, grace: float) -> None:
        end = time.perf_counter() + grace
        while self.busy and time.perf_counter() < end:
            self._receive(0.1)
        self.loaded.errors += len(self.busy)
        # What they may answer later is not for the next load to take for its own.
        for client in self.busy.values():
            client.socket.close()


def ask_many(clients: Sequence[Client], requests: Sequence[bytes], number: int) -> None:
    """Ask for so many answers, whatever they are, short of a failure of the server.

    Raises:
        NoAnswerError: An answer has a status of 500 or more, or there is none.

    """
    idle, busy, asked = list(clients), dict[int, Client](), 0
    while asked < number or busy:
        while idle and asked < number:
            client = idle.pop()
            client.send(requests[asked % len(requests)])
            busy[client.socket.fileno()] = client
            asked += 1
        ready = select.select(list(busy), [], [], 60)[0]
        if not ready:
            raise NoAnswerError("no answer within a minute")
        for descriptor in ready:
            if busy[descriptor].receive():
                idle.append(busy.pop(descriptor))
                if idle[-1].status >= 500:  # noqa: PLR2004
                    raise NoAnswerError(f"status {idle[-1].status}")

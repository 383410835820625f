"""The connections of a worker on real sockets, with a thread's part played by the test."""

import socket
import time
from collections.abc import Iterator

import pytest
from gunicorn.config import Config

from cases_service.server import connections
from cases_service.server.answers import Answer, held_bytes
from cases_service.server.connections import Connection, Connections

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1024 * 1024


class Worker:
    """Connections that are served at an address, and the requests that wait for an answer."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.waiting: list[Connection] = []
        self.clients: list[socket.socket] = []
        self.connections = Connections(cfg=Config(), limit=10, hand_over=self.waiting.append)
        self.connections.listen([listener])

    def connect(self, request: bytes = REQUEST) -> socket.socket:
        """Return a client whose request has been taken."""
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        self.clients.append(client)
        client.sendall(request)
        waiting = len(self.waiting)
        while len(self.waiting) == waiting:
            self.connections.wait(1)
        return client

    def answer(self, *parts: bytes) -> Answer:
        """Answer the last request, as a thread does."""
        conn = self.waiting.pop()
        answer = Answer(parts, keep=True)
        answer.send(conn.sock)
        self.connections.finish(conn, answer)
        return answer

    def turn(self) -> None:
        for _ in range(10):
            self.connections.wait(0.01)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = Worker(listener)
        yield worker
        worker.connections.close()
        for client in worker.clients:
            client.close()


def read_to_the_end(client: socket.socket) -> None:
    while client.recv(MIB):
        pass


def test_what_a_client_does_not_read_is_sent_as_it_reads(worker: Worker) -> None:
    client = worker.connect()
    answer = worker.answer(b"head", b"x" * 20 * MIB)
    assert 0 < answer.sent < answer.size
    received = bytearray()
    while len(received) < answer.size:
        worker.turn()
        received += client.recv(MIB)
    assert received == b"head" + b"x" * 20 * MIB
    assert answer.is_sent


def test_an_object_that_many_answers_have_counts_once() -> None:
    shared = b"x" * MIB
    answers = [Answer([b"head", shared], keep=True) for _ in range(20)]
    assert held_bytes(answers) == MIB + len(b"head")


def test_beyond_the_bound_the_slowest_reader_is_dropped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PENDING_BYTES", 50 * MIB)
    slow = worker.connect()
    slowest = worker.answer(b"a" * 20 * MIB)
    quick = worker.connect()
    second = worker.answer(b"b" * 20 * MIB)
    time.sleep(0.6)
    while second.sent == slowest.sent:
        quick.recv(MIB)
        worker.turn()
    newest = worker.connect()
    worker.answer(b"c" * 20 * MIB)
    assert len(worker.connections) == 2
    with pytest.raises(ConnectionResetError):
        read_to_the_end(slow)
    assert quick.recv(1) == b"b"
    assert newest.recv(1) == b"c"


def test_readers_that_keep_reading_are_not_dropped_before_the_higher_bound(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PENDING_BYTES", 10 * MIB)
    monkeypatch.setattr(connections, "MOST_PENDING_BYTES", 50 * MIB)
    for remaining, letter in ((1, b"a"), (2, b"b"), (2, b"c")):
        worker.connect()
        worker.answer(letter * 20 * MIB)
        assert len(worker.connections) == remaining


def test_who_goes_in_the_middle_of_an_answer_is_forgotten(worker: Worker) -> None:
    client = worker.connect()
    worker.answer(b"x" * 20 * MIB)
    client.close()
    worker.turn()
    assert len(worker.connections) == 0

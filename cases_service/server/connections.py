"""The connections of one worker: each is in one state, in which it waits for its client or for a thread, until a time.

    accepted
       │
       ▼     first byte       whole head       whole body, or none is read
     IDLE ─────────────▶ HEAD ──────────▶ BODY ──────────────────────────▶ ANSWERING
       ▲                  │                │                               │   │   │
       │                  │ malformed, too long, too late: refused         │   │   │ more than the kernel takes
       │                  ▼                ▼                               │   │   ▼
       │               CLOSING ◀───────────────────────────────────────────┘   │ SENDING ──▶ reset, where the
       │                  │       answered, not to be kept                     │   │         client does not read
       │                  ▼                                                    │   │
       │                closed                                                 │   │
       └───────────────────────────────────────────────────────────────────────┴───┘ answered, to be kept

All but ANSWERING wait for the client alone, in the worker's main loop, and may be ended at any time to make room: first
those that are closing anyway, then who has been silent for longest. In CLOSING what still comes is read and dropped:
the kernel would reset the connection otherwise, which can cost the client the end of its answer (RFC 9112, 9.6).
"""

import errno
import selectors
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum, auto
from time import monotonic
from typing import Any, Final

import structlog
from gunicorn.http import errors

from cases_service.server.answers import PENDING_BYTES, Answer, held_bytes
from cases_service.server.bodies import (
    BODIES_BYTES,
    Body,
    BodyProblem,
    BodyTooLargeError,
    body_deadline,
    expected_body,
    has_use_for_body,
)
from cases_service.server.heads import HEAD_BYTES, has_whole_head, parse_head
from cases_service.server.refusals import refusal

_HEAD_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 2.0
_LAST_BYTE_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1
_REPORT_SECONDS: Final = 10.0
_PART_BYTES: Final = 65536
# The kernel takes twice as much as it is asked for, at most twice net.core.wmem_max, and none before it is used.
_SEND_BUFFER_BYTES: Final = 262144
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger("cases_service.gunicorn")


class State(Enum):
    """What a connection waits for."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    SENDING = auto()
    CLOSING = auto()


_READING: Final = (State.IDLE, State.HEAD, State.BODY, State.CLOSING)
_WITHOUT_REQUEST: Final = (State.IDLE, State.HEAD)


class Connection:
    """A client's connection, and the request on it.

    Attributes:
        received: What has come and belongs to no request yet.
        deadline: When its state ends by itself, by `monotonic`.
        since: When its state began.
        arrived: When the request was there whole.
        content: The request's body, once it is there whole.
        problem: Why there is none.

    """

    def __init__(self, sock: socket.socket, client: Any, server: Any) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.state = State.IDLE
        self.received = bytearray()
        self.requests = 0
        self.deadline = self.since = self.arrived = 0.0
        self.request: Any = None
        self.body: Body | None = None
        self.body_size = 0
        self.content = b""
        self.problem: BodyProblem | None = None
        self.answer: Answer | None = None


class Connections:
    """All connections of a worker, and its listeners.

    Args:
        cfg: gunicorn's configuration.
        limit: How many connections there may be.
        hand_over: Called with a connection whose request is there whole, for a thread to answer. When that is done,
            `finish` has to be called.

    """

    def __init__(self, *, cfg: Any, limit: int, hand_over: Callable[[Connection], None]) -> None:
        self.poller = selectors.DefaultSelector()
        self._cfg, self._limit, self._hand_over = cfg, limit, hand_over
        self._in: dict[State, dict[Connection, None]] = {state: {} for state in State}
        self._listeners: list[socket.socket] = []
        self._resume_at: float | None = None
        self._stop_at: float | None = None
        self._bodies_bytes = 0
        self._shed, self._report_at = 0, 0.0

    def __len__(self) -> int:
        return sum(map(len, self._in.values()))

    def wait(self, seconds: float) -> None:
        """Do what there is to do for the clients, or wait for it until then."""
        for key, _ in self.poller.select(seconds):
            key.data(key.fileobj)
        self._end_overdue()
        if self._resume_at is not None and monotonic() >= self._resume_at:
            self._resume_at = None
            self._listen()

    # Accepting

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Accept connections from now on."""
        self._listeners = list(listeners)
        self._listen()

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.settimeout(0)
            self.poller.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept a connection, and tell whether more may be waiting."""
        if len(self) >= self._limit and not self._make_room():
            return False
        try:
            sock, client = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            # Files or memory ran out, or this one connection has ended already.
            return error.errno not in _NO_MORE or self._make_room()
        self._begin(Connection(sock, client, listener.getsockname()))
        return True

    def _begin(self, conn: Connection) -> None:
        conn.sock.settimeout(0)
        with suppress(OSError):  # who has gone already is noticed later
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._in[conn.state][conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, self._reader(conn))
        self._enter(conn, State.IDLE, _HEAD_SECONDS)

    def _make_room(self) -> bool:
        """End the connection that is missed least. Where each waits for a thread, accept no more for a moment."""
        conn = next(self._least_missed(), None)
        if conn is None:
            self._pause()
            return False
        self._shed += 1
        self._forget(conn)
        return True

    def _least_missed(self) -> Iterator[Connection]:
        yield from self._in[State.CLOSING]
        silent = [next(iter(self._in[state])) for state in _WITHOUT_REQUEST if self._in[state]]
        yield from sorted(silent, key=lambda conn: conn.since)
        for state in (State.BODY, State.SENDING):
            yield from self._in[state]

    def _pause(self) -> None:
        if self._resume_at is None and self._stop_at is None:
            for listener in self._listeners:
                self.poller.unregister(listener)
            self._resume_at = monotonic() + _PAUSE_SECONDS

    def begin_to_stop(self) -> None:
        """Take the connections that wait to be accepted, refuse all others, and let no silent one delay the stop."""
        self._stop_at = monotonic() + _STOP_SECONDS
        for listener in self._listeners:
            if self._resume_at is None:
                self.poller.unregister(listener)
            # No more than can be waiting: after SIGHUP other workers go on listening, and more will come.
            for _ in range(self._cfg.backlog):
                if not self._accept(listener):
                    break
            listener.close()
        self._listeners, self._resume_at = [], None
        for state in _WITHOUT_REQUEST:
            for conn in self._in[state]:
                conn.deadline = min(conn.deadline, self._stop_at)

    def close(self) -> None:
        """End all connections, whatever they are doing."""
        for connections in self._in.values():
            for conn in list(connections):
                conn.sock.close()
        for listener in self._listeners:
            listener.close()
        self.poller.close()

    # From state to state

    def _enter(self, conn: Connection, state: State, seconds: float) -> None:
        """Let a connection be in a state for as long as this."""
        del self._in[conn.state][conn]
        was_read, conn.state = conn.state in _READING, state
        self._in[state][conn] = None
        conn.since = monotonic()
        conn.deadline = conn.since + seconds
        if self._stop_at is not None and state in _WITHOUT_REQUEST:
            conn.deadline = min(conn.deadline, max(self._stop_at, conn.since + _STOP_SECONDS))
        if was_read and state not in _READING:
            self.poller.unregister(conn.sock)
        elif state in _READING and not was_read:
            self.poller.register(conn.sock, selectors.EVENT_READ, self._reader(conn))

    def _reader(self, conn: Connection) -> Callable[[socket.socket], None]:
        return lambda _: self._read(conn)

    def _read(self, conn: Connection) -> None:
        if conn.state not in _READING:  # ended or moved on by an earlier event of the same turn
            return
        try:
            part = conn.sock.recv(_PART_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._forget(conn)
            return
        if not part:
            self._notice_end(conn)
        elif conn.state is State.CLOSING:
            conn.deadline = min(monotonic() + _LAST_BYTE_SECONDS, conn.since + _CLOSE_SECONDS)
        else:
            known = len(conn.received)
            conn.received += part
            self._go_on(conn, known)

    def _notice_end(self, conn: Connection) -> None:
        """Do what is due where the client sends no more: who has sent half a body may still read why it is refused."""
        if conn.state is State.BODY:
            self._refuse(conn, errors.NoMoreData())
            return
        if conn.state is State.HEAD:
            log.debug("request_broken_off")
        self._forget(conn)

    def _go_on(self, conn: Connection, known: int) -> None:
        """Read on in what has been received, of which `known` bytes had been looked at before."""
        if conn.state is State.BODY:
            self._read_body(conn)
        elif has_whole_head(conn.received, known):
            self._read_head(conn)
        elif len(conn.received) > HEAD_BYTES:
            is_line = b"\r\n" not in conn.received
            self._refuse(conn, errors.LimitRequestLine(0, 0) if is_line else errors.LimitRequestHeaders(""))
        elif conn.state is not State.HEAD:
            self._enter(conn, State.HEAD, _HEAD_SECONDS)

    def _read_head(self, conn: Connection) -> None:
        conn.requests += 1
        try:
            conn.request, conn.received = parse_head(
                conn.received, cfg=self._cfg, client=conn.client, number=conn.requests
            )
        except (errors.ParseException, OSError, StopIteration) as error:
            self._refuse(conn, error)
            return
        self._begin_body(conn)

    def _begin_body(self, conn: Connection) -> None:
        expects_continue, conn.request._expected_100_continue = conn.request._expected_100_continue, False  # noqa: SLF001
        try:
            conn.body = expected_body(conn.request)
        except BodyTooLargeError:
            self._do_without_body(conn, BodyProblem.TOO_LARGE if has_use_for_body(conn.request) else None)
            return
        if conn.body is None:
            self._answer(conn)
        elif not has_use_for_body(conn.request):
            self._skip_body(conn, conn.body)
        else:
            if expects_continue and not conn.received:
                with suppress(OSError):  # who has gone already is noticed later
                    conn.sock.send(_CONTINUE)
            self._enter(conn, State.BODY, 0)
            self._read_body(conn)

    def _skip_body(self, conn: Connection, body: Body) -> None:
        """Answer without the body. Where it has not come yet, nobody knows where the next request begins."""
        with suppress(errors.ParseException, BodyTooLargeError):
            body.feed(conn.received)
        conn.body = None
        if body.is_whole:
            self._answer(conn)
        else:
            self._do_without_body(conn, None)

    def _do_without_body(self, conn: Connection, problem: BodyProblem | None) -> None:
        conn.request.force_close()
        conn.problem = problem
        conn.received.clear()
        self._count_body(conn, 0)
        conn.body = None
        self._answer(conn)

    def _read_body(self, conn: Connection) -> None:
        body = conn.body
        assert body is not None  # noqa: S101  in this state there is one
        try:
            body.feed(conn.received)
        except BodyTooLargeError:
            self._do_without_body(conn, BodyProblem.TOO_LARGE)
            return
        except (errors.ParseException, OSError) as error:
            self._refuse(conn, error)
            return
        self._count_body(conn, len(body.content))
        if self._bodies_bytes > BODIES_BYTES:
            self._do_without_body(conn, BodyProblem.OVERLOADED)
        elif body.is_whole:
            conn.content, conn.body = bytes(body.content), None
            self._answer(conn)
        else:
            conn.deadline = body_deadline(body)

    def _count_body(self, conn: Connection, size: int) -> None:
        self._bodies_bytes += size - conn.body_size
        conn.body_size = size

    def _answer(self, conn: Connection) -> None:
        conn.arrived = monotonic()
        self._enter(conn, State.ANSWERING, 0)
        self._hand_over(conn)

    def finish(self, conn: Connection, answer: Answer) -> None:
        """Send what the thread could not, and go on with the connection when all is sent."""
        conn.request, conn.content, conn.problem = None, b"", None
        self._count_body(conn, 0)
        if answer.is_lost:
            self._forget(conn)
        elif not answer.is_sent:
            self._send_on(conn, answer)
        elif answer.keep:
            self._await_request(conn)
        else:
            self._close(conn)

    def _await_request(self, conn: Connection) -> None:
        self._enter(conn, State.IDLE, self._cfg.keepalive)
        if conn.received:
            # What came behind the request that is answered is the beginning of the next.
            self._go_on(conn, 0)

    def _send_on(self, conn: Connection, answer: Answer) -> None:
        self._enter(conn, State.SENDING, 0)
        conn.answer = answer
        conn.deadline = answer.deadline
        self.poller.register(conn.sock, selectors.EVENT_WRITE, lambda _: self._send(conn, answer))
        while held_bytes(sender.answer for sender in self._in[State.SENDING] if sender.answer) > PENDING_BYTES:
            self._drop_slowest()

    def _send(self, conn: Connection, answer: Answer) -> None:
        if conn.state is not State.SENDING:
            return
        answer.send(conn.sock)
        if answer.is_sent:
            self.poller.unregister(conn.sock)
            conn.answer = None
            self._enter(conn, State.ANSWERING, 0)
            self.finish(conn, answer)
        else:
            conn.deadline = answer.deadline

    def _drop_slowest(self) -> None:
        senders = {conn: conn.answer for conn in self._in[State.SENDING] if conn.answer}
        self._drop(min(senders, key=lambda conn: senders[conn].bytes_a_second))

    def _refuse(self, conn: Connection, error: Exception) -> None:
        answer = refusal(error)
        answer.send(conn.sock)
        self._count_body(conn, 0)
        conn.body = None
        conn.received.clear()
        self._close(conn)

    # The ends

    def _close(self, conn: Connection) -> None:
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(conn)
        else:
            self._enter(conn, State.CLOSING, _LAST_BYTE_SECONDS)

    def _drop(self, conn: Connection) -> None:
        """Reset a connection whose client does not read, so that the kernel keeps nothing for it either."""
        log.warning("answer_not_read")
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._forget(conn)

    def _forget(self, conn: Connection) -> None:
        del self._in[conn.state][conn]
        if conn.state is not State.ANSWERING:
            self.poller.unregister(conn.sock)
        self._count_body(conn, 0)
        # An event of the same turn that is still to come finds it like this.
        conn.state, conn.answer = State.ANSWERING, None
        conn.sock.close()

    def _end_overdue(self) -> None:
        now = monotonic()
        for state in (*_READING, State.SENDING):
            for conn in [conn for conn in self._in[state] if conn.deadline <= now]:
                self._end(conn)
        if self._shed and now >= self._report_at:
            log.warning("connections_shed", connections=self._shed, limit=self._limit)
            self._shed, self._report_at = 0, now + _REPORT_SECONDS

    def _end(self, conn: Connection) -> None:
        if conn.state is State.SENDING:
            self._drop(conn)
        elif conn.state in (State.HEAD, State.BODY):
            self._refuse(conn, TimeoutError())
        else:
            self._forget(conn)

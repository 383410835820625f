"""The client connections of a worker: each has a state, in which it waits for its client or a thread until a deadline.

    accepted
       │
       ▼     first byte       whole head       whole body, or none is read
     IDLE ─────────────▶ HEAD ──────────▶ BODY ──────────────────────────▶ ANSWERING
       ▲                  │                │                               │   │   │
       │                  │ malformed, too long, too late: refused         │   │   │ more than the kernel takes
       │                  ▼                ▼                               │   │   ▼
       │               CLOSING ◀───────────────────────────────────────────┘   │ SENDING ──▶ reset, if the client
       │                  │       answered, not to be kept                     │   │         does not read
       │                  ▼                                                    │   │
       │                closed                                                 │   │
       └───────────────────────────────────────────────────────────────────────┴───┘ answered, to be kept

In every state but ANSWERING a connection only waits for its client, in the worker's main loop, and may be dropped at
any time to make room: first those that are closing anyway, then the longest silent. In CLOSING, further input is read
and discarded. Otherwise the kernel would reset the connection, and the client could lose the end of its response (RFC
9112, section 9.6).
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

from cases_service.server.answers import MOST_PENDING_BYTES, PENDING_BYTES, Answer, held_bytes
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
# Checking every deadline takes tens of microseconds, and there is an event for each request.
_LOOK_SECONDS: Final = 0.1
_REPORT_SECONDS: Final = 10.0
_PART_BYTES: Final = 65536
# The kernel doubles this, up to twice net.core.wmem_max, and allocates nothing before it is used.
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
        received: Bytes received that belong to no request yet.
        deadline: When the state times out, by `monotonic`.
        since: When the state began.
        arrived: When the request was complete.
        content: The request's body, once complete.
        problem: Why there is no body.

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
    """All client connections of a worker, and its listeners.

    Args:
        cfg: gunicorn's configuration.
        limit: The most connections that it keeps open.
        hand_over: Called with a connection whose request is complete, for a thread to answer it. The main loop then
            calls `finish`.

    """

    def __init__(self, *, cfg: Any, limit: int, hand_over: Callable[[Connection], None]) -> None:
        self.poller = selectors.DefaultSelector()
        self._cfg, self._limit, self._hand_over = cfg, limit, hand_over
        self._in: dict[State, dict[Connection, None]] = {state: {} for state in State}
        self._listeners: list[socket.socket] = []
        self._resume_at: float | None = None
        self._stop_at: float | None = None
        self._bodies_bytes = 0
        self._look_at = 0.0
        self._shed, self._report_at = 0, 0.0

    def __len__(self) -> int:
        return sum(map(len, self._in.values()))

    def wait(self, seconds: float) -> None:
        """Serve the clients' events, waiting for one at most this long."""
        if self._resume_at is not None:
            seconds = min(seconds, _PAUSE_SECONDS)
        for key, _ in self.poller.select(seconds):
            key.data(key.fileobj)
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._end_overdue(now)
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            self._listen()

    # Accepting

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Start accepting connections."""
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
            # Out of files or memory, or only this connection has ended already.
            return error.errno not in _NO_MORE or self._make_room()
        self._begin(Connection(sock, client, listener.getsockname()))
        return True

    def _begin(self, conn: Connection) -> None:
        conn.sock.settimeout(0)
        with suppress(OSError):  # if the client has gone, reading notices
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._in[conn.state][conn] = None
        self.poller.register(conn.sock, selectors.EVENT_READ, self._reader(conn))
        self._enter(conn, State.IDLE, _HEAD_SECONDS)

    def _make_room(self) -> bool:
        """Drop the most expendable connection. If all of them wait for a thread, pause accepting."""
        conn = next(self._expendable(), None)
        if conn is None:
            self._pause()
            return False
        self._shed += 1
        self._forget(conn)
        return True

    def _expendable(self) -> Iterator[Connection]:
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

    def stop_accepting(self) -> None:
        """Accept what is in the backlog, close the listeners, and let no silent connection delay the stop."""
        self._stop_at = monotonic() + _STOP_SECONDS
        for listener in self._listeners:
            if self._resume_at is None:
                self.poller.unregister(listener)
            # At most one backlog: after SIGHUP other workers still listen, and new connections keep coming.
            for _ in range(self._cfg.backlog):
                if not self._accept(listener):
                    break
            listener.close()
        self._listeners, self._resume_at = [], None
        for state in _WITHOUT_REQUEST:
            for conn in self._in[state]:
                conn.deadline = min(conn.deadline, self._stop_at)

    def close(self) -> None:
        """Close all connections, whatever their state."""
        for connections in self._in.values():
            for conn in list(connections):
                conn.sock.close()
        for listener in self._listeners:
            listener.close()
        self.poller.close()

    # From state to state

    def _enter(self, conn: Connection, state: State, seconds: float) -> None:
        """Move a connection to a state, for at most this long."""
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
        if conn.state not in _READING:  # an earlier event of this turn changed its state
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
        """Handle the end of the client's input: after half a body, the client may still read the refusal."""
        if conn.state is State.BODY:
            self._refuse(conn, errors.NoMoreData())
            return
        if conn.state is State.HEAD:
            log.debug("request_broken_off")
        self._forget(conn)

    def _go_on(self, conn: Connection, known: int) -> None:
        """Parse what has been received; its first `known` bytes were searched before."""
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
                with suppress(OSError):  # if the client has gone, reading notices
                    conn.sock.send(_CONTINUE)
            self._enter(conn, State.BODY, 0)
            self._read_body(conn)

    def _skip_body(self, conn: Connection, body: Body) -> None:
        """Answer without the body, and close if part of it is still to come: the next request's start is unknown."""
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
        """Send the rest that the thread could not, then keep or close the connection."""
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
            # The bytes after the answered request begin the next one.
            self._go_on(conn, 0)

    def _send_on(self, conn: Connection, answer: Answer) -> None:
        self._enter(conn, State.SENDING, 0)
        conn.answer = answer
        conn.deadline = answer.deadline
        self.poller.register(conn.sock, selectors.EVENT_WRITE, lambda _: self._send(conn, answer))
        self._bound_answers()

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

    def _bound_answers(self) -> None:
        senders = {conn: conn.answer for conn in self._in[State.SENDING] if conn.answer}
        while (held := held_bytes(senders.values())) > PENDING_BYTES:
            stalled = [conn for conn, answer in senders.items() if answer.is_stalled]
            if not stalled and held <= MOST_PENDING_BYTES:
                break
            slowest = min(stalled or senders, key=lambda conn: senders[conn].bytes_a_second)
            del senders[slowest]
            self._drop(slowest)

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
        """Reset a connection whose client does not read, so that the kernel frees its buffer too."""
        log.warning("answer_not_read")
        with suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._forget(conn)

    def _forget(self, conn: Connection) -> None:
        del self._in[conn.state][conn]
        if conn.state is not State.ANSWERING:
            self.poller.unregister(conn.sock)
        self._count_body(conn, 0)
        # A later event of the same turn then ignores it.
        conn.state, conn.answer = State.ANSWERING, None
        conn.sock.close()

    def _end_overdue(self, now: float) -> None:
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

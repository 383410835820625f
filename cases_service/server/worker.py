"""The gunicorn worker that repeats nothing of a request, lets no client hold it up, and drops no client as it stops.

gunicorn's own threaded worker quotes what it cannot parse in its answer and in its log, resets the connections that
wait in the backlog when it stops, and keeps a thread for whoever takes his time: to send the head of a request, the
body that it announces, or to read the answer. Here a thread sees a request whole and waits for no client: its main
loop reads the heads, nobody reads bodies, and an answer fits into the kernel's buffer.
"""

import re
import select
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Any, Final

import structlog
from gunicorn import util
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from cases_service.server.queue_time import arrival
from cases_service.settings import read_settings

_OPERATORS_THREADS: Final = 2
_HEAD_SECONDS: Final = 20.0
_HEAD_BYTES: Final = 65536
# The parser refuses a line feed without its carriage return at once, so there is no need to wait for more.
_HEAD_END: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_HEAD_END_BYTES: Final = 4
_HEALTH: Final = re.compile(rb"(GET|HEAD) /healthz[/? ]")
# The kernel takes twice as much as it is asked for, at most twice net.core.wmem_max, and none before it is used.
_SEND_BUFFER_BYTES: Final = 262144
_SEND_SECONDS: Final = 5.0
_LAST_BYTE_SECONDS: Final = 2.0
_LAST_BYTES: Final = 65536
_SERVICE_ERRORS: Final = (
    errors.InvalidResponseHeader,
    errors.InvalidResponseHeaderName,
    errors.ConfigurationProblem,
)
_STATUSES: Final = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.UnsupportedTransferCoding: HTTPStatus.NOT_IMPLEMENTED,
    TimeoutError: HTTPStatus.REQUEST_TIMEOUT,
}

log = structlog.get_logger("cases_service.gunicorn")


class CasesLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without its access log, whose every line has the path; the application writes one without."""

    def access(self, *_: Any) -> None:
        """Do nothing."""


class CasesWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, apart from what the module says of it.

    A connection is in the poller and in one of three queues, each in the order of its time-outs: `keepalived_conns`
    between two requests, `pending_conns` before its first one and in the middle of a head, `_closing` after the last
    answer. Or a thread has it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alive: bool
        self._closing: deque[TConn] = deque()
        self._quitting = False
        self._drained_at: float | None = None
        # Whether the process lives is told even while every other thread waits for the database.
        self._health_thread = ThreadPoolExecutor(1)
        # Metrics and readiness are of most use while every other thread has too much to do.
        self._operators_port = read_settings().admin_port
        self._operators_threads = ThreadPoolExecutor(_OPERATORS_THREADS)

    def run(self) -> None:
        """Serve until told to stop, then end the application's connections to the database."""
        threading.excepthook = _log_end_of_thread
        try:
            super().run()
        finally:
            self._health_thread.shutdown(wait=False)
            self._operators_threads.shutdown(wait=False)
            self.wsgi.close()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop to be ready at once, and to accept connections when those who ask for that have had time to see it."""
        if self._drained_at is None:
            self._drained_at = monotonic() + self.wsgi.begin_to_stop()
        if self._drained_at <= monotonic():
            super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop at once, and only once.

        Ctrl-C reaches a worker twice, from the terminal and from its master. gunicorn's own handler takes a lock of
        the thread pool that the handler which it interrupts may hold already, and then waits for itself.
        """
        if not self._quitting:
            self._quitting = True
            Worker.handle_quit(self, sig, frame)

    def is_parent_alive(self) -> bool:
        """Tell whether the master lives; without it this worker stops as it would on SIGTERM."""
        is_alive: bool = super().is_parent_alive()
        is_drained = self._drained_at is not None and self._drained_at <= monotonic()
        self.alive = self.alive and is_alive and not is_drained
        return is_alive

    def enqueue_req(self, conn: TConn) -> None:
        """Take a new connection, whose first request is read like every later one."""
        with suppress(OSError):  # who has gone already is noticed later
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        conn.init()
        conn.head = bytearray()
        self._wait_for_head(conn, self.pending_conns, _HEAD_SECONDS)

    def finish_request(self, conn: TConn, future: Future[Any]) -> None:
        """Keep the connection for its next request, or close it without waiting for the client to do so."""
        if future.cancelled() or future.exception() is not None:
            self._forget(conn)
        elif not future.result():
            self._close(conn)
        else:
            # What came behind the request that is answered is the beginning of the next.
            conn.head += conn.parser.unreader.take_buffered()
            if self._has_whole_head(conn, 0):
                self._hand_over(conn)
            elif conn.head:
                self._wait_for_head(conn, self.pending_conns, _HEAD_SECONDS)
            else:
                self._wait_for_head(conn, self.keepalived_conns, self.cfg.keepalive)

    def _wait_for_head(self, conn: TConn, queue: deque[TConn], seconds: float) -> None:
        conn.sock.settimeout(0)
        conn.queue = queue
        conn.timeout = monotonic() + (seconds if self.alive else min(seconds, STOP_KEEPALIVE_LINGER))
        queue.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_head, conn))

    def _read_head(self, conn: TConn, client: socket.socket) -> None:
        try:
            part = client.recv(_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part, conn.head = b"", bytearray()
        known = len(conn.head)
        conn.head += part
        if not conn.head:
            self._leave_queue(conn)
            self._forget(conn)
        elif not part or self._has_whole_head(conn, known):
            # Where the client has gone in the middle, the parser notices it at once.
            self._leave_queue(conn)
            self._hand_over(conn)
        elif len(conn.head) > _HEAD_BYTES:
            is_line = b"\r\n" not in conn.head
            error: Exception = errors.LimitRequestLine(0, 0) if is_line else errors.LimitRequestHeaders("")
            self._leave_queue(conn)
            self._refuse(conn, error)
        elif conn.queue is self.keepalived_conns:
            self._leave_queue(conn)
            self._wait_for_head(conn, self.pending_conns, _HEAD_SECONDS)

    @staticmethod
    def _has_whole_head(conn: TConn, known: int) -> bool:
        return _HEAD_END.search(conn.head, max(known - _HEAD_END_BYTES + 1, 0)) is not None

    def _leave_queue(self, conn: TConn) -> None:
        self.poller.unregister(conn.sock)
        conn.queue.remove(conn)

    def _hand_over(self, conn: TConn) -> None:
        """Give a connection to a thread, with a request that is there whole."""
        conn.arrived = monotonic()
        is_health = _HEALTH.match(conn.head) is not None
        conn.patience = 0 if is_health else _SEND_SECONDS
        conn.parser.unreader.unread(bytes(conn.head))
        conn.head.clear()
        future = self._threads(conn, is_health=is_health).submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def _threads(self, conn: TConn, *, is_health: bool) -> ThreadPoolExecutor:
        if is_health:
            return self._health_thread
        threads: ThreadPoolExecutor = self.tpool
        return self._operators_threads if conn.server[1] == self._operators_port else threads

    def handle(self, conn: TConn) -> Any:
        """Answer a request, in a thread, and return whether the connection can be kept."""
        arrival.at = conn.arrived
        return super().handle(conn)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Let the application answer; drop a client that does not read what is too long for the kernel's buffer."""
        conn.sock.settimeout(conn.patience)
        try:
            return super().handle_request(req, conn)
        except (TimeoutError, BlockingIOError):
            _reset(conn.sock)
            raise StopIteration from None

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:  # noqa: FBT001  gunicorn's signature
        """Tell whether the next request can be found: behind no body, or one that has come already."""
        conn.sock.settimeout(0)
        try:
            return keepalive and bool(conn.parser.finish_body(max_bytes=_LAST_BYTES))
        except (OSError, errors.ParseException):
            return False

    def _close(self, conn: TConn) -> None:
        # Bytes that are still to come would make the kernel reset the connection, which can cost the client the end
        # of the answer (RFC 9112, section 9.6). So they are read for a while, by the poller.
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.settimeout(0)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_last_bytes, conn))
        except OSError:
            self._forget(conn)
            return
        conn.queue = self._closing
        conn.timeout = monotonic() + _LAST_BYTE_SECONDS
        self._closing.append(conn)

    def _read_last_bytes(self, conn: TConn, client: socket.socket) -> None:
        with suppress(OSError):
            if client.recv(_LAST_BYTES):
                return
        self._leave_queue(conn)
        self._forget(conn)

    def murder_pending(self) -> None:
        """Close the connections that were given time to send a request, or to close, and did not use it."""
        for conn in _overdue(self.pending_conns):
            self._leave_queue(conn)
            if conn.head:
                self._refuse(conn, TimeoutError())
            else:
                self._forget(conn)
        for conn in _overdue(self._closing):
            self._leave_queue(conn)
            self._forget(conn)

    def _refuse(self, conn: TConn, error: Exception) -> None:
        self.handle_error(None, conn.sock, conn.client, error)
        self._close(conn)

    def _forget(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  gunicorn's signature
        """Begin or pause to accept connections; when stopping, take those that wait and refuse all others."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            # No more than can be waiting: after SIGHUP other workers go on listening, and more will come.
            for _ in range(self.cfg.backlog):
                if not select.select([listener], [], [], 0)[0]:
                    break
                self.accept(listener)
            listener.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Let no connection that sends nothing, or half of a head, delay the stop."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def handle_error(self, _req: Any, client: socket.socket, _addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn could not parse, or what went wrong outside the application, by its status alone."""
        if isinstance(exc, errors.ParseException | TimeoutError) and not isinstance(exc, _SERVICE_ERRORS):
            status = _STATUSES.get(type(exc), HTTPStatus.BAD_REQUEST)
            log.warning("request_refused", status=status.value, reason=type(exc).__name__)
        else:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            log.error("unexpected_error", exc_info=exc)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        with suppress(OSError):
            util.write_nonblock(client, head.encode("ascii"))


def _overdue(queue: deque[TConn]) -> Iterator[TConn]:
    """Yield the connections whose time is over; whoever takes one removes it."""
    while queue and queue[0].timeout <= monotonic():
        yield queue[0]


def _reset(client: socket.socket) -> None:
    """Close a connection whose client does not read, so that the kernel keeps nothing for it either."""
    log.warning("answer_not_read")
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    # Python's own would write a traceback with the exception's message.
    log.error("thread_ended", exc_info=end.exc_value)

"""The gunicorn worker that repeats nothing of a request, lets no client hold it up, and drops no client as it stops.

gunicorn's own threaded worker quotes what it cannot parse in its answer and in its log, keeps a thread waiting for
the first byte of each new connection and its main loop for the last one of each old, and resets the connections that
wait in the backlog when it stops.
"""

import select
import selectors
import socket
import threading
from collections import deque
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
from gunicorn.workers.gthread import TConn, ThreadWorker

from cases_service.settings import read_settings

_OPERATORS_THREADS: Final = 2
_FIRST_BYTE_SECONDS: Final = 30.0
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
}

log = structlog.get_logger("cases_service.gunicorn")


class CasesLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without its access log, whose every line has the path; the application writes one without."""

    def access(self, *_: Any) -> None:
        """Do nothing."""


class CasesWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, apart from what the module says of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alive: bool
        self._closing: deque[TConn] = deque()
        self._quitting = False
        # Metrics and readiness are of most use while every other thread has too much to do.
        self._operators_port = read_settings().admin_port
        self._operators_threads = ThreadPoolExecutor(_OPERATORS_THREADS)

    def run(self) -> None:
        """Serve until told to stop, then end the application's connections to the database."""
        threading.excepthook = _log_end_of_thread
        try:
            super().run()
        finally:
            self.wsgi.close()

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
        self.alive = self.alive and is_alive
        return is_alive

    def enqueue_req(self, conn: TConn) -> None:
        """Give a connection to a thread; a new one not before it has sent something."""
        if conn.initialized or conn.data_ready:
            self._hand_over(conn)
            return
        conn.sock.settimeout(0)
        conn.timeout = monotonic() + _FIRST_BYTE_SECONDS
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _hand_over(self, conn: TConn) -> None:
        is_operators = conn.server[1] == self._operators_port
        future = (self._operators_threads if is_operators else self.tpool).submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def finish_request(self, conn: TConn, future: Future[Any]) -> None:
        """Keep the connection for its next request, or close it without waiting for the client to do so."""
        if future.cancelled() or future.exception() is not None or future.result():
            super().finish_request(conn, future)
        else:
            self._close(conn)

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
        conn.timeout = monotonic() + _LAST_BYTE_SECONDS
        self._closing.append(conn)

    def _read_last_bytes(self, conn: TConn, client: socket.socket) -> None:
        try:
            if client.recv(_LAST_BYTES):
                return
        except OSError:
            pass
        self._closing.remove(conn)
        self._end(conn)

    def murder_pending(self) -> None:
        """Close the connections that were given time to send something, or to close, and did not use it."""
        super().murder_pending()
        while self._closing and self._closing[0].timeout <= monotonic():
            self._end(self._closing.popleft())

    def _end(self, conn: TConn) -> None:
        self.poller.unregister(conn.sock)
        self._forget(conn)

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
        """Let neither kept nor new connections that send nothing delay the stop."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:  # noqa: FBT001  gunicorn's signature
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except errors.ParseException:
            # In the body, which is read after the answer to pass over it: there is nothing more to be said.
            return False

    def handle_error(self, _req: Any, client: socket.socket, _addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn could not parse, or what went wrong outside the application, by its status alone."""
        if isinstance(exc, errors.ParseException) and not isinstance(exc, _SERVICE_ERRORS):
            status = _STATUSES.get(type(exc), HTTPStatus.BAD_REQUEST)
            log.warning("request_refused", status=status.value, reason=type(exc).__name__)
        else:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            log.error("unexpected_error", exc_info=exc)
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        with suppress(OSError):
            util.write_nonblock(client, head.encode("ascii"))


def _log_end_of_thread(end: threading.ExceptHookArgs) -> None:
    # Python's own would write a traceback with the exception's message.
    log.error("thread_ended", exc_info=end.exc_value)

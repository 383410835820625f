"""The gunicorn worker: echoes nothing of a request, is not blocked by slow clients, and drops no client as it stops.

gunicorn's own threaded worker quotes malformed requests in its response and log, resets the connections in the backlog
when it stops, and blocks a thread while a slow client sends a head or a body, or reads a response. Here a thread gets a
complete request and never waits for a client (`connections`).

    serving ── SIGTERM ──▶ draining ── CASES_DRAIN_SECONDS ──▶ stopping ── all answered, or graceful_timeout ──▶ ended
       │                 answers as before, not ready        accepts no more                                      ▲
       └─────────────┴── SIGINT, SIGQUIT ────────────────────────────┴─────────────────────────────────────────────┘

A signal handler only records the signal. The kernel wakes the main loop, which acts on it, since code that a handler
interrupts is not prepared for anything (cpython, issue 121649). SIGABRT is the exception: the master sends it to a
worker whose main loop hangs, and it ends the process at once.
"""

import os
import selectors
import signal
import traceback
from collections import deque
from contextlib import suppress
from functools import partial
from io import BytesIO
from math import inf
from time import monotonic
from types import FrameType
from typing import Any, Final

import structlog
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from cases_service.server import descriptors
from cases_service.server.answers import Answer, new_response, whole_answer
from cases_service.server.connections import Connection, Connections
from cases_service.server.heads import REPEATED_IDENTITY, has_repeated_identity, is_health
from cases_service.server.memory import LARGE_BYTES, give_back, keep_no_large_blocks
from cases_service.server.queue_time import arrival
from cases_service.server.refusals import failure
from cases_service.server.threads import Threads
from cases_service.settings import read_settings

_OPERATORS_THREADS: Final = 2
_TURN_SECONDS: Final = 1.0
_STOPPING_TURN_SECONDS: Final = 0.1
# Long enough for a burst of large answers to end: each of them would need the memory again.
_GIVE_BACK_SECONDS: Final = 2.0
_QUICK: Final = frozenset({signal.SIGINT, signal.SIGQUIT})
# Ignored in workers: if a whole process group gets them, so does the master, which tells its workers what to do.
_MASTERS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_WAKE: Final = b"\0"

log = structlog.get_logger("cases_service.gunicorn")


class CasesLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without its access log, whose lines have the path; the application logs requests itself."""

    def access(self, *_: Any) -> None:
        """Do nothing."""


class CasesWorker(Worker):  # type: ignore[misc]
    """A process that answers requests: a main loop for the clients, threads for the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alive: bool
        self._noted: set[int] = set()
        self._drained_at: float | None = None
        self._give_back_at = inf
        self._answered: deque[tuple[Connection, Answer]] = deque()

    # Signals

    def init_signals(self) -> None:
        """Record the signals that end a worker, ignore the master's, and let both wake the main loop."""
        for number in (signal.SIGTERM, *_QUICK):
            signal.signal(number, self._note)
        for number in _MASTERS:
            signal.signal(number, _ignore)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGABRT, _end_here)
        signal.set_wakeup_fd(self.PIPE[1], warn_on_full_buffer=False)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.add(number)

    @property
    def _is_quick(self) -> bool:
        return not _QUICK.isdisjoint(self._noted)

    # The main loop

    def run(self) -> None:
        """Serve until told to stop, then end the application's connections to the database."""
        keep_no_large_blocks()
        settings = read_settings()
        self._is_operators = settings.is_admin_address
        self._threads = Threads(self.cfg.threads, "requests")
        # Answers /healthz even while every other thread waits for the database.
        self._health_thread = Threads(1, "requests-health")
        # Metrics and readiness matter most while every other thread is busy.
        self._operators_threads = Threads(_OPERATORS_THREADS, "requests-operators")
        limit = descriptors.connection_limit(settings, self.cfg.worker_connections)
        self._connections = Connections(cfg=self.cfg, limit=limit, hand_over=self._hand_over)
        self._connections.poller.register(self.PIPE[0], selectors.EVENT_READ, self._take_answered)
        try:
            self._serve()
            self._stop()
        finally:
            self._connections.close()
            self.wsgi.close()

    def _serve(self) -> None:
        self._connections.listen(self.sockets)
        while not (self._is_quick or self._has_to_stop()):
            self._turn(_TURN_SECONDS)

    def _has_to_stop(self) -> bool:
        """Tell whether to stop accepting. After SIGTERM, load balancers first get time to see /readyz fail."""
        if signal.SIGTERM in self._noted and self._drained_at is None:
            self._drained_at = monotonic() + self.wsgi.start_draining()
        is_drained = self._drained_at is not None and self._drained_at <= monotonic()
        return is_drained or not self.alive or not self._has_master()

    def _has_master(self) -> bool:
        return bool(self.ppid == os.getppid())

    def _stop(self) -> None:
        self.alive = False
        if self._is_quick:
            return
        self._connections.stop_accepting()
        end = monotonic() + self.cfg.graceful_timeout
        while len(self._connections) and monotonic() < end and not self._is_quick:
            self._turn(_STOPPING_TURN_SECONDS)

    def _turn(self, seconds: float) -> None:
        self.notify()
        if self._drained_at is not None and self.alive:
            seconds = max(0.0, min(seconds, self._drained_at - monotonic()))
        self._connections.wait(seconds)
        if monotonic() >= self._give_back_at:
            self._give_back_at = inf
            self._health_thread.submit(give_back)

    def _take_answered(self, wakeups: int) -> None:
        os.read(wakeups, 4096)
        while self._answered:
            conn, answer = self._answered.popleft()
            if max(answer.size, len(conn.content)) >= LARGE_BYTES:
                self._give_back_at = monotonic() + _GIVE_BACK_SECONDS
            self._connections.finish(conn, answer)

    # A request

    def _hand_over(self, conn: Connection) -> None:
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False
        self._threads_for(conn).submit(partial(self._answer, conn))

    def _threads_for(self, conn: Connection) -> Threads:
        if is_health(conn.request):
            return self._health_thread
        return self._operators_threads if self._is_operators(conn.server) else self._threads

    def _answer(self, conn: Connection) -> None:
        """Answer a request. Runs in a thread."""
        arrival.at = conn.arrived
        try:
            answer = self._call_application(conn)
        except (Exception, SystemExit) as error:  # noqa: BLE001  it ends only this request
            answer = failure(error)
        answer.send(conn.sock)
        self._answered.append((conn, answer))
        self._wake()

    def _call_application(self, conn: Connection) -> Answer:
        response, collected, environ = new_response(conn.request, conn.client, conn.server, self.cfg)
        environ["wsgi.input"] = BytesIO(conn.content)
        if conn.problem is not None:
            environ[conn.problem.value] = True
            environ["CONTENT_LENGTH"] = "0"
        if has_repeated_identity(conn.request):
            environ[REPEATED_IDENTITY] = True
        if not (self.alive and self.cfg.keepalive):
            response.force_close()
        return whole_answer(response, collected, self.wsgi, environ)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full, so the main loop wakes anyway
            os.write(self.PIPE[1], _WAKE)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, children do not inherit it."""


def _end_here(_number: int, frame: FrameType | None) -> None:
    places = traceback.extract_stack(frame)
    log.error("worker_hangs", frames=[f"{place.filename}:{place.lineno} {place.name}" for place in places])
    os._exit(1)

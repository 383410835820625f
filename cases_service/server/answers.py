"""Buffers responses until the client has read them, and collects them from gunicorn's response objects.

The application produces a whole response at once. Its thread writes it to the socket; the worker's main loop sends the
rest as the client reads. So a slow client costs memory but no thread. A static file is one object in memory, however
many clients read it.
"""

import socket
from collections import deque
from collections.abc import Iterable
from itertools import islice
from time import monotonic
from typing import Any, Final

from gunicorn.http import wsgi

from cases_service.server.listener import LISTENER

STALL_SECONDS: Final = 20.0
"""How long a client may take nothing of an answer."""

PENDING_BYTES: Final = 64 * 1024 * 1024
"""The memory for all unsent answers of one worker; beyond it, stalled clients are dropped, the slowest first."""

MOST_PENDING_BYTES: Final = 4 * PENDING_BYTES
"""Beyond this, the slowest client is dropped even if none has stalled."""

_PAUSE_SECONDS: Final = 0.5

_TOTAL_SECONDS: Final = 60.0
_BYTES_A_SECOND: Final = 16 * 1024
_VIEWS_AT_ONCE: Final = 16


class Collected:
    """Stands in for gunicorn's client socket: keeps the parts of a response, without copying them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def sendall(self, part: bytes) -> None:
        """Keep a part."""
        self.parts.append(part)


class Answer:
    """A whole answer, and how much of it has been sent.

    Attributes:
        keep: Whether the connection is kept for another request.
        is_lost: Whether the client disconnected before it had everything.

    """

    def __init__(self, parts: Iterable[bytes], *, keep: bool) -> None:
        self.keep = keep
        self.is_lost = False
        self.size = 0
        self.sent = 0
        self.began = self._read_at = monotonic()
        self._views = deque(memoryview(part) for part in parts if part)
        self.size = sum(map(len, self._views))

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has all of it."""
        return not self._views

    def send(self, client: socket.socket) -> None:
        """Write as much as the kernel accepts without waiting."""
        try:
            while self._views:
                self._advance(client.sendmsg(list(islice(self._views, _VIEWS_AT_ONCE))))
        except BlockingIOError:
            pass
        except OSError:
            self.is_lost = True
            self._views.clear()

    def _advance(self, number: int) -> None:
        self.sent += number
        self._read_at = monotonic()
        while self._views and number >= len(self._views[0]):
            number -= len(self._views.popleft())
        if number:
            self._views[0] = self._views[0][number:]

    @property
    def deadline(self) -> float:
        """The deadline for the client to read more, by `monotonic`."""
        return min(monotonic() + STALL_SECONDS, self.began + _TOTAL_SECONDS + self.sent / _BYTES_A_SECOND)

    @property
    def bytes_a_second(self) -> float:
        """How fast the client has read it, averaged over at least a second."""
        return self.sent / max(monotonic() - self.began, 1.0)

    @property
    def is_stalled(self) -> bool:
        """Whether the client has not read for a moment."""
        return monotonic() - self._read_at > _PAUSE_SECONDS

    def held(self) -> dict[int, int]:
        """Return the sizes of the objects still held in memory, by their ids."""
        return {id(view.obj): len(view.obj) for view in self._views}  # type: ignore[arg-type]


def held_bytes(answers: Iterable[Answer]) -> int:
    """Return the memory that the answers hold; an object shared by several counts once."""
    objects: dict[int, int] = {}
    for answer in answers:
        objects |= answer.held()
    return sum(objects.values())


def whole_answer(response: Any, collected: Collected, application: Any, environ: dict[str, Any]) -> Answer:
    """Run the application, and return its whole response."""
    parts = application(environ, response.start_response)
    try:
        for part in parts:
            response.write(part)
        response.close()
    finally:
        if hasattr(parts, "close"):
            parts.close()
    return Answer(collected.parts, keep=not response.should_close())


def new_response(request: Any, client: Any, server: Any, cfg: Any) -> tuple[Any, Collected, dict[str, Any]]:
    """Return an empty response, the collector of its parts, and the request's WSGI environment."""
    collected = Collected()
    response, environ = wsgi.create(request, collected, client, server, cfg)
    environ["wsgi.multithread"] = True
    environ[LISTENER] = server
    return response, collected, environ

"""Keeps an answer in memory until the client has taken it, and tells what gunicorn's answers look like.

The application fills an answer at once. Its thread offers it to the kernel, and what does not fit is sent as the client
makes room, by the worker's main loop: a client that reads slowly costs memory, and no thread. A file of the service is
one object in memory however many clients read it.
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
"""What all unsent answers of one worker may take; the slowest readers are dropped beyond."""

_TOTAL_SECONDS: Final = 60.0
_BYTES_A_SECOND: Final = 16 * 1024
_VIEWS_AT_ONCE: Final = 16


class Collected:
    """What gunicorn takes for the socket of an answer: it keeps the parts, of which none is copied."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def sendall(self, part: bytes) -> None:
        """Keep a part."""
        self.parts.append(part)


class Answer:
    """A whole answer, and how much of it has been sent.

    Attributes:
        keep: Whether the connection is kept for another request.
        is_lost: Whether the client went before it had everything.

    """

    def __init__(self, parts: Iterable[bytes], *, keep: bool) -> None:
        self.keep = keep
        self.is_lost = False
        self.size = 0
        self.sent = 0
        self.began = monotonic()
        self._views = deque(memoryview(part) for part in parts if part)
        self.size = sum(map(len, self._views))

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has all of it."""
        return not self._views

    def send(self, client: socket.socket) -> None:
        """Give the kernel what it has room for, without waiting."""
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
        while self._views and number >= len(self._views[0]):
            number -= len(self._views.popleft())
        if number:
            self._views[0] = self._views[0][number:]

    @property
    def deadline(self) -> float:
        """Until when, by `monotonic`, the client has to take more."""
        return min(monotonic() + STALL_SECONDS, self.began + _TOTAL_SECONDS + self.sent / _BYTES_A_SECOND)

    @property
    def bytes_a_second(self) -> float:
        """How fast it has been read, over a second at least."""
        return self.sent / max(monotonic() - self.began, 1.0)

    def held(self) -> dict[int, int]:
        """Return the sizes of the objects in memory that are still needed, by their identities."""
        return {id(view.obj): len(view.obj) for view in self._views}  # type: ignore[arg-type]


def held_bytes(answers: Iterable[Answer]) -> int:
    """Return what the answers take in memory; an object that several of them have counts once."""
    objects: dict[int, int] = {}
    for answer in answers:
        objects |= answer.held()
    return sum(objects.values())


def whole_answer(response: Any, collected: Collected, application: Any, environ: dict[str, Any]) -> Answer:
    """Have the application answer, and return all of it."""
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
    """Return an empty response, what keeps its parts, and the WSGI environment of the request."""
    collected = Collected()
    response, environ = wsgi.create(request, collected, client, server, cfg)
    environ["wsgi.multithread"] = True
    environ[LISTENER] = server
    return response, collected, environ

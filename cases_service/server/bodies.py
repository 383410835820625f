"""Reads request bodies as they arrive, so that no thread waits for one.

What happens to a body depends on its framing (RFC 9112, section 6) and on the method:

    head ──── no body, or a method without one ──────────────────────────────────────────▶ application
     │                                                                (an unread body closes the connection)
     ├─────── Content-Length over the limit ─────────────────────────▶ too large ─────────▶ application: 413, then close
     ▼                                                                   ▲
    100 Continue, if expected                                            │
     ▼                                                                   │
    reading ─ more than the limit in chunks ─────────────────────────────┘
     │   ├─── more than BODIES_BYTES in this worker ──────────────────▶ overloaded ───────▶ application: 503, then close
     │   ├─── nothing for IDLE_SECONDS, or too slow on the whole ─────▶ 408
     │   └─── malformed, or the end of the connection ────────────────▶ 400
     ▼
    whole ───────────────────────────────────────────────────────────────────────────────▶ application

Chunked bodies are parsed strictly: sizes in hexadecimal digits only, extensions by their grammar, CRLF at the end of
each line, and trailers checked like the head. The content of a chunk size or a trailer is never logged or passed on.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from time import monotonic
from typing import Any, Final

from gunicorn.http import errors
from gunicorn.http.body import CHUNK_EXT_RE, ChunkedReader, LengthReader

BODY_BYTES: Final = 1024 * 1024
"""The longest body, except for an import."""

IMPORT_BYTES: Final = 16 * 1024 * 1024
"""The longest body of an import. The application checks a compressed one again after decompression."""

BODIES_BYTES: Final = 64 * 1024 * 1024
"""The memory for all bodies of one worker, while they arrive and while they are processed."""

IDLE_SECONDS: Final = 20.0
"""How long a client may send nothing of a body."""

_TOTAL_SECONDS: Final = 60.0
_BYTES_A_SECOND: Final = 128 * 1024
_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})" + CHUNK_EXT_RE.pattern)
_SIZE_LINE_BYTES: Final = 256
_TRAILER_BYTES: Final = 8190


class BodyProblem(StrEnum):
    """Why the application gets no body. The value is the key in the WSGI environment that says so."""

    TOO_LARGE = "cases.body_too_large"
    OVERLOADED = "cases.overloaded"


class BodyTooLargeError(Exception):
    """The body is longer than its limit."""


class LengthBody:
    """A body whose length is known."""

    def __init__(self, length: int) -> None:
        self.content = bytearray()
        self.length = length
        self.began = monotonic()

    @property
    def is_whole(self) -> bool:
        """Whether the body is complete."""
        return len(self.content) == self.length

    def feed(self, received: bytearray) -> None:
        """Consume the body's bytes from the front of `received`."""
        part = received[: self.length - len(self.content)]
        self.content += part
        del received[: len(part)]


class ChunkedBody:
    """A body that comes in chunks (RFC 9112, section 7.1)."""

    def __init__(self, request: Any, limit: int) -> None:
        self.content = bytearray()
        self.is_whole = False
        self.began = monotonic()
        self._request = request
        self._limit = limit
        self._framing = 0
        self._missing = 0
        self._read: Callable[[bytearray], bool] = self._read_size

    def feed(self, received: bytearray) -> None:
        """Consume the body's bytes from the front of `received`.

        Raises:
            BodyTooLargeError: It is over the limit, or most of it is framing.
            gunicorn.http.errors.ParseException: It is malformed.

        """
        while not self.is_whole and self._read(received):
            pass

    def _read_size(self, received: bytearray) -> bool:
        end = received.find(b"\r\n", 0, _SIZE_LINE_BYTES + 2)
        if end < 0:
            if len(received) > _SIZE_LINE_BYTES:
                raise errors.InvalidChunkSize(b"")
            return False
        line = _SIZE_LINE.fullmatch(received, 0, end)
        if line is None:
            raise errors.InvalidChunkSize(b"")
        self._missing = int(line[1], 16)
        self._framing += end + 4
        if self._missing + len(self.content) > self._limit or self._framing > self._limit:
            raise BodyTooLargeError
        del received[: end + 2]
        self._read = self._read_data if self._missing else self._read_trailers
        return True

    def _read_data(self, received: bytearray) -> bool:
        part = received[: self._missing]
        self.content += part
        del received[: len(part)]
        self._missing -= len(part)
        if self._missing:
            return False
        self._read = self._read_end_of_data
        return True

    def _read_end_of_data(self, received: bytearray) -> bool:
        if not b"\r\n".startswith(received[:2]):
            raise errors.ChunkMissingTerminator(b"")
        if len(received) < 2:  # noqa: PLR2004  a carriage return and a line feed
            return False
        del received[:2]
        self._read = self._read_size
        return True

    def _read_trailers(self, received: bytearray) -> bool:
        if received.startswith(b"\r\n"):
            del received[:2]
            self.is_whole = True
            return True
        end = received.find(b"\r\n\r\n", 0, _TRAILER_BYTES)
        if end < 0:
            if len(received) > _TRAILER_BYTES:
                raise errors.LimitRequestHeaders("")
            return False
        self._request.parse_headers(bytes(received[:end]), from_trailer=True)
        del received[: end + 4]
        self.is_whole = True
        return True


Body = LengthBody | ChunkedBody


def expected_body(request: Any) -> Body | None:
    """Return the body that a request's head announces, still unread; None for an empty one.

    Raises:
        BodyTooLargeError: Its length is over the limit.

    """
    limit = IMPORT_BYTES if request.path.rstrip("/").endswith("/import") else BODY_BYTES
    reader = request.body.reader
    if isinstance(reader, ChunkedReader):
        return ChunkedBody(request, limit)
    length: int = reader.length if isinstance(reader, LengthReader) else 0
    if length > limit:
        raise BodyTooLargeError
    return LengthBody(length) if length else None


def has_use_for_body(request: Any) -> bool:
    """Tell whether requests of this method have a body."""
    return request.method in _METHODS


def body_deadline(body: Body) -> float:
    """Return the deadline for more of the body, by `monotonic`."""
    slowest = body.began + _TOTAL_SECONDS + len(body.content) / _BYTES_A_SECOND
    return min(monotonic() + IDLE_SECONDS, slowest)

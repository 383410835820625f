"""Reads lines as they arrive, and yields batches by number of lines or by seconds after the first line."""

import os
import select
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Final, NamedTuple

from cases_service.loading.load import MAXIMUM_LINE_BYTES

_READ_BYTES: Final = 2**16


class Batch(NamedTuple):
    """The non-blank lines of a batch, each with its number, and the number of the last line read."""

    lines: list[tuple[int, bytes]]
    through: int


class LineFeed:
    """The lines of a descriptor that may never end.

    Args:
        descriptor: The source: a pipe, a socket, a terminal or a file.
        size: The number of lines in a full batch.
        seconds: How long a line waits for others.
        stop: A descriptor that becomes readable to end reading. The complete lines are the last batch.

    """

    def __init__(self, descriptor: int, *, size: int, seconds: float, stop: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._seconds = seconds
        self._stop = stop
        self._number = 0
        self._rest = b""
        self._skips = False
        self._lines: list[tuple[int, bytes]] = []
        self._due = inf

    def batches(self) -> Iterator[Batch]:
        """Yield batches until the input ends or reading is stopped. A line that is too long is cut."""
        for chunk in self._chunks():
            for line in self._complete(chunk):
                self._take(line)
                if len(self._lines) >= self._size:
                    yield self._batch()
            if self._lines and monotonic() >= self._due:
                yield self._batch()
        if self._lines:
            yield self._batch()

    def _chunks(self) -> Iterator[bytes]:
        """Yield each chunk; nothing if a batch is due first; at the end of the input, the end of its last line."""
        poll = _poll(self._descriptor, self._stop)
        while True:
            ready = _wait(poll, self._due)
            if self._stop in ready:
                return
            if self._descriptor not in ready:
                yield b""
                continue
            chunk = os.read(self._descriptor, _READ_BYTES)
            if not chunk:
                if self._rest or self._skips:
                    yield b"\n"
                return
            yield chunk

    def _complete(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that a chunk completes, and keep the rest for the next chunk."""
        *complete, self._rest = (self._rest + chunk).split(b"\n")
        for line in complete:
            if self._skips:
                self._skips = False
            else:
                yield line
        if self._skips:
            self._rest = b""
        elif len(self._rest) > MAXIMUM_LINE_BYTES:
            self._skips = True
            line, self._rest = self._rest, b""
            yield line

    def _take(self, line: bytes) -> None:
        self._number += 1
        if line.strip():
            if not self._lines:
                self._due = monotonic() + self._seconds
            self._lines.append((self._number, line))

    def _batch(self) -> Batch:
        lines, self._lines, self._due = self._lines, [], inf
        return Batch(lines, self._number)


def _poll(*descriptors: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll


def _wait(poll: select.poll, due: float) -> set[int]:
    """Return the descriptors that have data, or have ended, within the remaining time."""
    left = None if due == inf else max(0.0, due - monotonic()) * 1000
    return {descriptor for descriptor, _ in poll.poll(left)}

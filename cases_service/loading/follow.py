"""Reads lines as they come, and gives them on in batches: after so many lines, or so many seconds after the first."""

import os
import select
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Final, NamedTuple

from cases_service.loading.load import MAXIMUM_LINE_BYTES

_READ_BYTES: Final = 2**16


class Batch(NamedTuple):
    """Lines that are not blank, each with its number, and the number of the last line that they complete."""

    lines: list[tuple[int, bytes]]
    through: int


class LineFeed:
    """Lines of a descriptor that need not end.

    Args:
        descriptor: Where they come from: a pipe, a socket, a terminal or a file.
        size: How many lines make a batch.
        seconds: For how long a line waits for others.
        stop: A descriptor that becomes readable where no more is to be read. What is complete is a last batch.

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
        """Yield batches until the input ends, or is to be read no more. Of a line that is too long, its beginning."""
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
        """Yield what comes; nothing, where a batch is due first. At the end of the input, what ends its last line."""
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
        """Yield the lines that a chunk completes, and keep what is left for the next one."""
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
    """Return which descriptors have something to read, or have ended, within the time that is left."""
    left = None if due == inf else max(0.0, due - monotonic()) * 1000
    return {descriptor for descriptor, _ in poll.poll(left)}

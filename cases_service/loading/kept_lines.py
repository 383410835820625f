"""Keeps the lines of a load on disk, so that wrong ones can be shown at the end."""

import tempfile
from collections.abc import Container, Iterator
from types import TracebackType
from typing import Self

from cases_service.loading.files import MAXIMUM_LINE_BYTES, LineStream


def shown(line: bytes) -> dict[str, str]:
    """Return the `text` of a line if it may be shown: a signing key's line may hold a secret."""
    is_shown = b"signing_key" not in line and b"secret" not in line and len(line) <= MAXIMUM_LINE_BYTES
    return {"text": line.decode("utf-8", "replace").rstrip("\r\n")} if is_shown else {}


class KeptLines:
    """A stream whose lines are kept until it is closed, in a file that nobody else can open."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed at the end of the block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its newline, or at most `limit` bytes of it."""
        line = self._stream.readline(limit)
        self._file.write(line)
        return line

    def read(self, numbers: Container[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield line numbers, each with its `text` if it may be shown."""
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if number in numbers:
                yield number, shown(line)

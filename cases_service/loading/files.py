"""Reads the lines of files to load, each with its number, in memory that does not depend on their size."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final, NamedTuple, Protocol

from cases_service.loading.outcome import LoadError

# Enough for texts of maximum length in which every character is escaped.
MAXIMUM_LINE_BYTES: Final = 2**20


class LineStream(Protocol):
    """The part of a binary file or pipe that a load uses."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its newline, or at most `limit` bytes of it."""


class LoadFile(NamedTuple):
    """A file to load: its name in errors, and its bytes."""

    name: str
    stream: LineStream


def lines_of(file: LoadFile, advance: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines of a file, each with its number. A line that is too long is cut."""
    for number in count(1):
        line = _line(file, number)
        if not line:
            return
        if number == 1:
            _refuse_other_forms(file, line)
        advance(len(line))
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if content.strip() or len(line) > MAXIMUM_LINE_BYTES:
            yield number, content
        while len(line) > MAXIMUM_LINE_BYTES and not line.endswith(b"\n"):
            line = _line(file, number)
            advance(len(line))


def _line(file: LoadFile, number: int) -> bytes:
    try:
        return file.stream.readline(MAXIMUM_LINE_BYTES + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise LoadError(file.name, number, None, "cannot be read (it is no gzip file, or a damaged one)") from None
    except OSError as error:
        raise LoadError(file.name, number, None, f"cannot be read ({error.strerror})") from None


# Files mistaken for NDJSON, by their first bytes.
_OTHER_FORMS: Final = {
    b"\x1f\x8b": "a gzip file: give it a name that ends in .gz, or unpack it",
    b"PK\x03\x04": "a zip file: unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it",
    codecs.BOM_UTF16_LE: "text in UTF-16: write it in UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: write it in UTF-8",
    b"{\0": "text in UTF-16: write it in UTF-8",
    b"\0{": "text in UTF-16: write it in UTF-8",
}


def _refuse_other_forms(file: LoadFile, line: bytes) -> None:
    for start, form in _OTHER_FORMS.items():
        if line.startswith(start):
            raise LoadError(file.name, None, None, form)

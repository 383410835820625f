"""Opens what commands read."""

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import click

from cases_service.cli.standard_streams import is_input_open


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file for bytes: `-` is standard input, and one that ends in .gz is unpacked."""
    if name == "-":
        yield standard_input()
    elif name.endswith(".gz"):
        with gzip.open(name) as unpacked:
            yield cast("BinaryIO", unpacked)
    else:
        with Path(name).open("rb") as file:
            yield file


def standard_input() -> BinaryIO:
    """Return standard input.

    Raises:
        click.UsageError: It is closed.

    """
    if not is_input_open():
        raise click.UsageError("standard input is closed: name a file, or pipe something in.")
    return sys.stdin.buffer

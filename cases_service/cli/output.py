"""Prints what commands list and count."""

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

import click

from cases_service.cases import timestamps
from cases_service.terminal import printable


def show_json(value: Any, file: TextIO | None = None) -> None:
    """Print a value as one line of JSON in ASCII, which no terminal takes for a control sequence."""
    click.echo(json.dumps(value), file=file)


def show(things: Sequence[Any], *, as_json: bool) -> None:
    """Print what was listed: as an array of objects, or as a table with a line of headings."""
    rows = [{name: _shown(value) for name, value in dataclasses.asdict(thing).items()} for thing in things]
    if as_json:
        show_json(rows)
    elif rows:
        lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            click.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def _cell(value: str | list[str] | None) -> str:
    return printable((",".join(value) if isinstance(value, list) else value) or "-")


def _shown(value: object) -> str | list[str] | None:
    if isinstance(value, datetime):
        return timestamps.from_datetime(value)
    if isinstance(value, list):
        return value
    return None if value is None else str(value)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not 1."""
    plural = f"{noun[:-1]}ies" if noun.endswith("ty") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"

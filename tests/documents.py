"""Reads the documents: the code blocks to paste and run, and the tables."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from cases_service.embedded.server import _find_programs
from tests.process.running import SCRIPTS, environment

ROOT = Path(__file__).parent.parent
_FENCED = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block and its location."""

    document: str
    line: int
    language: str
    text: str


def all_blocks(document: str) -> Iterator[Block]:
    """Return the code blocks of a document, in order."""
    text = (ROOT / document).read_text()
    for found in _FENCED.finditer(text):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[2], dedent(found[3]))


def without_blocks(document: str) -> str:
    """Return a document without its code blocks."""
    return _FENCED.sub("", (ROOT / document).read_text())


def blocks(document: str, language: str) -> Iterator[str]:
    """Return the code blocks of a document in a language, in order."""
    return (found.text for found in all_blocks(document) if found.language == language)


def block(document: str, language: str, containing: str) -> str:
    """Return the one code block of a document in a language that contains this.

    The caller runs it: test_code_blocks.py reads the calls, so the arguments must be literals.
    """
    (found,) = (text for text in blocks(document, language) if containing in text)
    return found


def run(script: str, directory: Path, postgres: Path | None = None, /, **variables: str) -> str:
    """Run lines of a document in bash, and return their output.

    PATH has the project's commands and the programs of a PostgreSQL, by default the package's.
    """
    path = f"{_find_programs(postgres)}:{SCRIPTS}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment(**(variables | {"PATH": path})),
        cwd=directory,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout

"""Reads the documents as their readers do: the code blocks to paste and run, and what stands in tables."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from cases_service.embedded import _find_programs
from tests.process.running import SCRIPTS, environment

ROOT = Path(__file__).parent.parent


def blocks(document: str, language: str) -> Iterator[str]:
    """Return the code blocks of a document in a language, in order."""
    for found in re.finditer(
        rf"^( *)```{language}\n(.*?)^\1```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE
    ):
        yield dedent(found[2])


def block(document: str, language: str, containing: str) -> str:
    """Return the one code block of a document in a language that contains this."""
    (found,) = (text for text in blocks(document, language) if containing in text)
    return found


def run(script: str, directory: Path, postgres: Path | None = None, /, **variables: str) -> str:
    """Run lines of a document in bash, and return what they print.

    In the path are the project's commands and the programs of a PostgreSQL, by default the package's.
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

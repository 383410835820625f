"""Reads the documents as their readers do: the code blocks to paste, and what stands in tables."""

import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

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

"""Loads the hand-written SQL: the statements of queries/, the schema and its migrations."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import aiosql

_PACKAGE = Path(__file__).parents[1]
_PARAMETER = re.compile(r"%\((\w+)\)s")


def source(name: str) -> Path:
    """Return the path of a file or folder: at the top of the source tree, or inside the installed package."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement for PostgreSQL, with parameters $1, $2, …, and their names in queries/."""

    name: bytes
    text: bytes
    parameters: tuple[str, ...]


@cache
def numbered(subject: str) -> dict[str, Statement]:
    """Return the statements of queries/<subject>.sql by name, with numbered parameters."""
    return {name: number(f"{subject}.{name}", text) for name, text in statements(subject).items()}


def number(name: str, text: str) -> Statement:
    """Convert psycopg's %(name)s parameters to numbered ones, in the order of their first use."""
    names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    parts = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", text)
    return Statement(name.encode(), parts.replace("%%", "%").encode(), names)


@cache
def statements(subject: str) -> dict[str, str]:
    """Return the statements of queries/<subject>.sql by name, with psycopg's %(name)s parameters."""
    queries = aiosql.from_path(source("queries") / f"{subject}.sql", "psycopg", mandatory_parameters=False)
    return {name: getattr(queries, name).sql for name in queries.available_queries if not name.endswith("_cursor")}


def templates(subject: str) -> dict[str, str]:
    """Return the texts of queries/<subject>.sql by name, as they are written: with :name parameters, and comments."""
    text = (source("queries") / f"{subject}.sql").read_text("utf-8")
    return dict(re.findall(r"(?s)-- name: (\w+)\n(.*?);\n", text))

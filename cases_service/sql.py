"""Finds the hand-written SQL: the statements of queries/, the schema and its migrations."""

from functools import cache
from pathlib import Path

import aiosql

_PACKAGE = Path(__file__).parent


def source(name: str) -> Path:
    """Return the path of a file or folder that stands at the top of the tree and inside an installed package."""
    installed = _PACKAGE / name
    return installed if installed.exists() else _PACKAGE.parent / name


@cache
def statements(subject: str) -> dict[str, str]:
    """Return the statements of queries/<subject>.sql by name, with psycopg's %(name)s parameters."""
    queries = aiosql.from_path(source("queries") / f"{subject}.sql", "psycopg", mandatory_parameters=False)
    return {name: getattr(queries, name).sql for name in queries.available_queries if not name.endswith("_cursor")}

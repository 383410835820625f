"""The shape of the house: who may know what."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cases_service.database.statements import source, statements
from tests.process.running import environment
from tests.statements import statements_of_requests

PACKAGE = Path(__file__).parent.parent / "cases_service"
MODULES = sorted(PACKAGE.rglob("*.py"))
SUBJECTS = sorted(file.stem for file in source("queries").glob("*.sql"))


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(name: str) -> set[str]:
    return {
        module.relative_to(PACKAGE).as_posix()
        for module in MODULES
        if any(found == name or found.startswith(f"{name}.") for found in imports(module))
    }


def test_one_module_imports_jwt() -> None:
    assert importers("jwt") == {"credentials/visitor_jwt.py"}


def test_one_module_owns_the_pool() -> None:
    assert importers("psycopg_pool") == {"database/connection_pool.py"}


def test_what_is_an_extra_is_imported_where_it_is_wanted() -> None:
    assert importers("opentelemetry") == {"observability/spans.py"}
    assert importers("cases_service.observability.spans") == set()


def test_the_modules_of_the_rate_limits_count_requests() -> None:
    """It takes a tenth of a second to import, for those who set a limit."""
    assert importers("limits") == {"api/memory_counters.py", "api/rate_limits.py", "settings.py"}


def test_one_module_encrypts() -> None:
    assert importers("cryptography.fernet") == {"credentials/secret_encryption.py"}


def test_flask_ends_at_the_blueprints() -> None:
    """The store, the SQL and what they use know nothing of a request."""
    rooms = {module.partition("/")[0] for module in importers("flask") - {"demo/portal/__main__.py"}}
    assert rooms == {"api", "application.py", "service.py", "observability"}
    assert {module for module in importers("flask") if module.startswith("observability/")} == {
        "observability/spans.py",
        "observability/tracing.py",
    }


def test_the_portal_is_the_demos_alone() -> None:
    assert importers("cases_service.demo.portal") == {"demo/demo.py", "demo/portal/__main__.py"}


def test_blueprints_see_no_sql() -> None:
    for module in (PACKAGE / "api" / "blueprints").glob("*.py"):
        found = set(imports(module))
        assert not {name for name in found if name.split(".")[0] in ("psycopg", "aiosql")}
        assert "cases_service.database.statements" not in found


def test_schemas_do_no_io() -> None:
    own = {name for name in imports(PACKAGE / "cases" / "schemas.py") if name.startswith("cases_service")}
    assert {".".join(name.split(".")[1:3]) for name in own if "." in name} == {
        "cases",
        "cases.filters",
        "cases.timestamps",
    }


def test_one_module_reads_the_environment() -> None:
    readers = {
        module.name
        for module in MODULES
        if re.search(r"\bos\.(environ|getenv)\b|from os import .*environ", module.read_text())
    }
    assert readers == {"settings.py"}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_statement_has_a_caller(subject: str) -> None:
    text = "\n".join(module.read_text() for module in MODULES)
    names = set(statements(subject))
    assert names
    assert {name for name in names if f'"{name}"' not in text} == set()


def test_no_sql_is_assembled_in_python() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                assert not re.search(r"(?i)\b(select|insert into|update|delete from)\s+\w", text), module


def test_each_statement_of_a_request_names_the_organization_for_each_table() -> None:
    for name, statement in statements_of_requests().items():
        tables = re.findall(
            r"\b(?:from|join)\s+(?!lateral|visitor\b|streams\b|nearest\b|page\b|unnest)(\w+)\s+(\w+)", statement
        )
        assert tables, name
        for _, alias in tables:
            assert f"{alias}.organization_id = %(organization_id)s" in statement, (name, alias)


ROOMS = {
    "cases": set(),
    "observability": set(),
    "database": {"observability"},
    "store": {"cases", "database"},
    "credentials": {"database", "store"},
    "loading": {"cases", "credentials", "database", "store"},
    "personal_data": {"database", "loading"},
    "api": {"cases", "credentials", "database", "loading", "observability", "store"},
    "embedded": {"database"},
    "server": {"database", "embedded"},
    "demo": {"credentials", "database", "embedded", "loading", "server"},
    "cli": {
        *("api", "cases", "credentials", "database", "demo", "embedded", "loading", "personal_data", "server", "store")
    },
}
"""Each room of the package, and the rooms that it may import from. Imports go one way."""

EXCEPTIONS = {("observability/spans.py", "database")}
"""Traces wrap the round trips to the database, and are imported only where they are wanted."""


def test_imports_between_the_rooms_go_one_way() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms == set(ROOMS)
    for module in MODULES:
        room, _, rest = module.relative_to(PACKAGE).as_posix().partition("/")
        if not rest:
            continue
        found = {name.split(".")[1] for name in imports(module) if name.startswith("cases_service.")} & set(ROOMS)
        allowed = ROOMS[room] | {room} | {other for path, other in EXCEPTIONS if path == f"{room}/{rest}"}
        assert found <= allowed, (module, found - allowed)


def test_the_order_of_the_rooms_has_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ROOMS):
        free = [room for room, needs in ROOMS.items() if room not in order and needs <= set(order)]
        assert free, order
        order += free


def test_every_module_says_what_it_knows() -> None:
    for module in MODULES:
        assert ast.get_docstring(ast.parse(module.read_text())), module


@pytest.mark.parametrize("lock", sorted((PACKAGE.parent / "requirements").glob("*.lock")), ids=lambda path: path.stem)
def test_every_package_is_locked_by_its_hashes(lock: Path) -> None:
    """And the locks name no registry: each installation chooses its own."""
    text = lock.read_text()
    requirements = [entry for entry in re.split(r"\n(?=\S)", re.sub(r"(?m)^ *#.*\n", "", text)) if entry.strip()]
    assert len(requirements) > 1
    for requirement in requirements:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement, re.DOTALL), requirement
    assert "://" not in text


def test_gunicorns_master_imports_no_metrics_before_their_directory_is_there() -> None:
    """Whether processes count together is decided as the module is imported."""
    program = "import runpy, sys; runpy.run_path('gunicorn.conf.py'); import cases_service.server.worker"
    program += "; sys.exit('cases_service.observability.metrics' in sys.modules)"
    given = environment(DATABASE_URL="postgresql://nowhere/cases")
    subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, env=given, check=True)

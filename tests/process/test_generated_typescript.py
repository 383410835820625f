"""Clients in TypeScript that two public generators make from the OpenAPI document: they compile strictly, and work."""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import Organization
from tests.process.running import PROJECT, Service, environment

SOURCES = PROJECT / "tests/typescript"
GENERATE = {
    "openapi-fetch": ["openapi-typescript", "openapi.json", "--output", "schema.d.ts"],
    "hey-api": ["openapi-ts", "--input", "openapi.json", "--output", "hey-api"],
}


def node(place: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = environment(CI="true", NO_COLOR="1", HOME=str(place), **variables)
    return subprocess.run(command, cwd=place, env=given, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def packages() -> Path:
    """The generators of the lock, installed once for this machine; a whole installation is marked."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    digest = hashlib.sha256((SOURCES / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = PROJECT / "build" / f"typescript-{digest}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # hey-api reads tsconfig.json there where it is installed, for the form of imports.
        for name in ("package.json", "package-lock.json", "tsconfig.json"):
            shutil.copy(SOURCES / name, place)
        if not (place / "complete").exists():
            # Not by `node`: the user's own settings say where the registry is.
            ran = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=place, check=False, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if ran.returncode:
                pytest.skip(f"npm cannot install the generators: {ran.stderr.strip().splitlines()[-1:]}")
            (place / "complete").touch()
    return place / "node_modules"


@pytest.fixture
def compiled(service: Service, packages: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that generates a client, compiles it with its program, and returns what Node runs."""

    def compile_program(name: str) -> Path:
        (tmp_path / "node_modules").symlink_to(packages)
        for source in ("package.json", "tsconfig.json", f"{name}.ts"):
            shutil.copy(SOURCES / source, tmp_path)
        (tmp_path / "openapi.json").write_bytes(service.curl("/openapi.json").body)
        generate, *arguments = GENERATE[name]
        for program in ([generate, *arguments], ["tsc", "--project", "tsconfig.json"]):
            ran = node(tmp_path, str(packages / ".bin" / program[0]), *program[1:])
            assert ran.returncode == 0, ran.stdout + ran.stderr
        return tmp_path / "compiled" / f"{name}.js"

    return compile_program


@pytest.mark.parametrize("name", GENERATE)
def test_a_generated_client_compiles_strictly_and_works(
    name: str, compiled: Callable[[str], Path], service: Service, organization: Organization
) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(2)
    for number, case_id in enumerate(cases):
        organization.update("cases", "id", case_id, case_number=str(number), status=("Open", "In Progress")[number])
    program = compiled(name)
    given = {"SERVICE": service.url(""), "API_TOKEN": organization.token, "ORGANIZATION_ID": str(organization.id)}
    ran = node(program.parent, "node", program.name, JWT=organization.jwt(visitor.external_id), **given)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        f"0 Open {visitor.contact_ids[0]} nobody",
        "case_number,status without",
        "case_number,status without",
        "3",
        "404 case_not_found",
    ]


def test_the_lock_names_no_addresses() -> None:
    assert '"resolved"' not in (SOURCES / "package-lock.json").read_text()

"""What checks a change: its programs are listed, and what cannot run is said in one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import citus
from tests.conftest import SERVER_URL
from tests.process.running import SCRIPTS

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    line.split()[0] for line in (ROOT / "requirements/debian.txt").read_text().splitlines() if not line.startswith("#")
}
# What comes in the package of another.
TOGETHER = {"java": "javac", "promtool": "prometheus", "unshare": "setpriv"}


def bare(path: Path, *programs: str) -> dict[str, str]:
    """Return an environment in which there are no other programs than these."""
    for program in programs:
        found = shutil.which(program)
        assert found
        (path / program).symlink_to(found)
    return {"PATH": str(path)}


def test_every_program_that_a_test_looks_for_is_listed() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    sought = set(re.findall(r'shutil\.which\("([\w-]+)"', source))
    assert len(sought) > 8
    assert {TOGETHER.get(program, program) for program in sought} <= PROGRAMS


def test_without_apt_it_says_what_to_install(tmp_path: Path) -> None:
    script = tmp_path / ".ci/programs"
    script.parent.mkdir()
    # Without the places that it looks into whatever the PATH is.
    text = (ROOT / ".ci/programs").read_text().replace("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin", "")
    script.write_text(text)
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements/debian.txt", tmp_path / "requirements")
    (tmp_path / "bin").mkdir()
    given = bare(tmp_path / "bin", "bash", "dirname", "grep", "jq")
    ran = subprocess.run(["bash", script], env=given, check=False, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(r"programs: as root on Debian: apt-get install apache2 caddy [^\n]+\n", ran.stderr)
    assert " jq" not in ran.stderr


def run_a_skip(place: Path, reason: str = "needs a moon", **given: str) -> subprocess.CompletedProcess[str]:
    """Run the suite's own hooks over a test that passes and one that skips."""
    test = place / "test_one.py"
    test.write_text(f"import pytest\n\ndef test_passes(): pass\n\ndef test_skips(): pytest.skip('{reason}')\n")
    command: list[str | Path] = [
        SCRIPTS / "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        f"--rootdir={place}",
        test,
    ]
    environment = {"PATH": os.environ["PATH"], SERVER_URL: os.environ[SERVER_URL], "PYTHONPATH": str(ROOT), **given}
    return subprocess.run(command, cwd=place, env=environment, check=False, capture_output=True, text=True, timeout=60)


def test_a_run_that_skips_says_last_how_to_get_the_rest(tmp_path: Path) -> None:
    ran = run_a_skip(tmp_path)
    assert ran.returncode == 0
    assert re.match(r"1 skipped: `make programs` installs ", ran.stdout.splitlines()[-1])


def test_a_run_in_which_nothing_may_skip_fails_where_something_does(tmp_path: Path) -> None:
    ran = run_a_skip(tmp_path, CASES_TEST_NO_SKIPS="1")
    assert ran.returncode == 1
    assert re.match(r"1 skipped, and with CASES_TEST_NO_SKIPS=1 none may", ran.stdout.splitlines()[-1])


def test_what_no_package_has_may_skip(tmp_path: Path) -> None:
    assert run_a_skip(tmp_path, citus.SKIP_REASON, CASES_TEST_NO_SKIPS="1").returncode == 0


def test_ci_lets_nothing_skip() -> None:
    assert "CASES_TEST_NO_SKIPS=1 make test" in (ROOT / ".ci/run").read_text()


def test_a_python_that_is_not_installed_is_left_out_in_a_line() -> None:
    command = [str(ROOT / ".ci/test-pythons"), "python3.99"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    expected = "test-pythons: python3.99 is not installed: left out\ntest-pythons: none of python3.99 is installed\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", expected)


def test_make_says_in_a_line_that_python_is_too_old(tmp_path: Path) -> None:
    older = tmp_path / "python"
    older.write_text('#!/bin/sh\nexec "$REAL" -c "import sys; sys.version_info = (3, 10, 1); exec(sys.argv[1])" "$2"\n')
    older.chmod(0o755)
    command = ["make", "--silent", ".venv", f"PYTHON={older}", f"VENV={tmp_path / 'venv'}"]
    # Where make runs the tests, it tells its own variables on.
    given = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    given["REAL"] = sys.executable
    ran = subprocess.run(command, cwd=ROOT, env=given, check=False, capture_output=True, text=True, timeout=60)
    first, *rest = ran.stderr.splitlines()
    assert re.match(r"make: needs Python 3\.11 or newer: ", first)
    assert (ran.returncode, len(rest)) == (2, 1)
    assert not (tmp_path / "venv").exists()


def test_the_locks_name_no_addresses() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert len(locks) > 5
    assert not [lock.name for lock in locks if "://" in lock.read_text()]

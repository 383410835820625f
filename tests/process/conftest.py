"""Services on the session's database, on ports that the system chooses."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.factories import SECRET_KEY
from tests.process.embedded_data import Template, make_template
from tests.process.running import COMMAND, GUNICORN, LOOPBACK, PROJECT, Service, environment, wait_for


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what became of the requests during each fault."""
    reports = (report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, []))
    rows = [row for report in reports for name, row in report.user_properties if name == "fault"]
    for row in [dict(zip(rows[0], rows[0], strict=True)), *rows] if rows else []:
        cells = [str(cell) for cell in row.values()]
        widths = [max(len(str(row[name])) for row in [*rows, {name: name}]) for name in rows[0]]
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)))


@contextlib.contextmanager
def short_path() -> Iterator[Path]:
    """Lend a directory whose path is short enough for the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="cases-", dir="/tmp"))  # pytest's are too long

    def is_removed() -> bool:
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()

    try:
        yield path
    finally:
        # A server that ends by itself removes its own files meanwhile.
        wait_for(is_removed)


@contextlib.contextmanager
def killed_at_end(programs: list[Service]) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            program.process.kill()
            program.process.wait()


def serve_arguments(address: str = f"{LOOPBACK}:0") -> list[str]:
    return [COMMAND, "serve", "--bind", address]


@pytest.fixture
def place() -> Iterator[Path]:
    with short_path() as path:
        yield path


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a program with these variables set and no others of ours."""
    programs: list[Service] = []

    def start(*arguments: str, cwd: Path = place, **variables: str) -> Service:
        programs.append(Service(list(arguments), environment(**variables), place, cwd=cwd))
        return programs[-1]

    with killed_at_end(programs):
        yield start


@pytest.fixture
def serve(start: Callable[..., Service], service_url: str) -> Callable[..., Service]:
    """Return a function that runs `cases-service serve` on the session's database."""

    def serve(**variables: str) -> Service:
        given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY}
        return start(*serve_arguments(), **(given | variables))

    return serve


@pytest.fixture
def gunicorn(start: Callable[..., Service], service_url: str) -> Callable[..., Service]:
    """Return a function that runs `gunicorn app:app` in the project, as the container does."""

    def gunicorn(**variables: str) -> Service:
        given = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_BIND": f"{LOOPBACK}:0"}
        return start(GUNICORN, "app:app", cwd=PROJECT, **(given | variables))

    return gunicorn


@pytest.fixture(scope="session")
def service(service_url: str, writer_url: str) -> Iterator[Service]:
    """The service for the tests that change nothing about it; it says all that it can say."""
    variables = {"DATABASE_URL": service_url, "CASES_SECRET_KEY": SECRET_KEY, "CASES_LOG_LEVEL": "debug"}
    variables["CASES_WRITE_DATABASE_URL"] = writer_url
    with short_path() as path:
        service = Service(serve_arguments(), environment(**variables), path, cwd=path)
        with killed_at_end([service]):
            service.wait_until_ready()
            yield service


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with short_path() as path:
        yield make_template(path / "data")


@pytest.fixture
def data_dir(template: Template, place: Path) -> Path:
    """A data directory with the template's schema and cases, whose server does not run."""
    return template.copy(place)

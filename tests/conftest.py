"""One PostgreSQL for the session, one database for each worker, one application for its tests.

Tests run side by side in one database: each makes an organization of its own and looks at nothing else.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import msgspec
import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.conninfo import make_conninfo

from cases_service.application import Application, create_app
from cases_service.credentials.secret_encryption import SecretBox
from cases_service.database.migrations import init_db
from cases_service.embedded.server import EmbeddedServer, join
from cases_service.settings import Settings
from tests import citus
from tests.factories import SECRET_KEY, Organization

SERVER_URL = "CASES_TEST_DATABASE_URL"
# Set where every program is there, as in CI: a test that skips fails the run, unless it is for one of these reasons.
NO_SKIPS = os.environ.get("CASES_TEST_NO_SKIPS", "") == "1"
ALLOWED_SKIPS = (citus.SKIP_REASON,)

# How long an example takes says more of the machine than of the code. Every run tries the same examples, apart from
# those of `make fuzz`, which loads `long`.
hypothesis.settings.register_profile("bounded", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=20_000, print_blob=True)
hypothesis.settings.load_profile("bounded")
LogLines = Callable[[], list[dict[str, Any]]]

_server: list[EmbeddedServer] = []
_cluster = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    if SERVER_URL in os.environ or hasattr(config, "workerinput"):
        return
    if citus.IS_USED:
        given = os.environ[citus.VARIABLE]
        os.environ[SERVER_URL] = _cluster.enter_context(citus.cluster()).url if given == "start" else given
        return
    directory = Path(tempfile.mkdtemp(prefix="cases-test-"))
    # Speed over safety: nothing in this server is worth keeping.
    fast = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}
    _server.append(join(directory, settings=fast))
    os.environ[SERVER_URL] = _server[0].conninfo


def pytest_unconfigure() -> None:
    _cluster.close()
    for server in _server:
        server.leave()
        server.wait_stopped(30)
        shutil.rmtree(server.data_dir, ignore_errors=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Say of tests that skipped how they run, below pytest's own last line; where none may skip, fail."""
    yield
    reporter: pytest.TerminalReporter | None = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput") or not reporter.stats.get("skipped"):
        return
    skipped = sum(not _is_allowed(report) for report in reporter.stats["skipped"])
    if not NO_SKIPS:
        skipped = len(reporter.stats["skipped"])
        reporter.write_line(f"{skipped} skipped: `make programs` installs what most of them need (as root, on Debian)")
        return
    if skipped == 0:
        return
    reporter.write_line(f"{skipped} skipped, and with CASES_TEST_NO_SKIPS=1 none may: see SKIPPED above", red=True)
    if session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_allowed(report: pytest.TestReport) -> bool:
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("",)
    return str(reason).removeprefix("Skipped: ") in ALLOWED_SKIPS


def pytest_report_header() -> str:
    with psycopg.connect(os.environ[SERVER_URL]) as connection:
        return f"PostgreSQL: {connection.info.parameter_status('server_version')}"


@pytest.fixture(scope="session")
def server_url() -> str:
    return os.environ[SERVER_URL]


@pytest.fixture(scope="session")
def service_role(server_url: str) -> Iterator[str]:
    """The role that serves: row security holds for it, so that a read without its organization finds nothing."""
    with _new_role(server_url, f"service_{uuid4().hex[:12]}") as name:
        yield name


@pytest.fixture(scope="session")
def writer_role(server_url: str) -> Iterator[str]:
    """The role that writes cases for the service."""
    with _new_role(server_url, f"writer_{uuid4().hex[:12]}") as name:
        yield name


@contextmanager
def _new_role(server_url: str, name: str) -> Iterator[str]:
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create role {name} login password '{name}'")
        yield name
        server.execute(f"drop role {name}")


@pytest.fixture(scope="session")
def database_url(server_url: str, service_role: str, writer_role: str) -> Iterator[str]:
    """The tests' own database, for one who may do everything."""
    name = f"cases_test_{uuid4().hex[:12]}"
    with citus.database(server_url, name) if citus.IS_USED else new_database(server_url, name) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            init_db(connection, service_role=service_role, writer_role=writer_role)
        if citus.IS_USED:
            citus.distribute(url)
        yield url


@contextmanager
def new_database(server_url: str, name: str) -> Iterator[str]:
    """Make an empty database, give its URL, and drop it in the end."""
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create database {name} template template0 encoding 'UTF8'")
        try:
            yield make_conninfo(server_url, dbname=name)
        finally:
            server.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def service_url(database_url: str, service_role: str) -> str:
    """The same database, for the service."""
    return make_conninfo(database_url, user=service_role, password=service_role)


@pytest.fixture(scope="session")
def writer_url(database_url: str, writer_role: str) -> str:
    """The same database, for requests that write."""
    return make_conninfo(database_url, user=writer_role, password=writer_role)


@pytest.fixture(scope="session")
def session_connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def box() -> SecretBox:
    return SecretBox([SECRET_KEY])


@pytest.fixture(scope="session")
def settings(service_url: str, writer_url: str) -> Settings:
    return Settings(database_url=service_url, write_database_url=writer_url, secret_key=SECRET_KEY)


@pytest.fixture(scope="session")
def app(settings: Settings) -> Iterator[Application]:
    app = create_app(settings)
    yield app
    app.close()


@pytest.fixture
def make_client(settings: Settings) -> Iterator[Callable[..., FlaskClient]]:
    """Return a function from changed settings to the client of an application of its own."""
    apps: list[Application] = []

    def make(**changes: Any) -> FlaskClient:
        apps.append(create_app(msgspec.structs.replace(settings, **changes)))
        return apps[-1].test_client()

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def log_lines(capfd: pytest.CaptureFixture[str]) -> LogLines:
    """Return a function that gives the lines of the log since it was called last."""
    capfd.readouterr()
    return lambda: [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


@pytest.fixture
def client(app: Application) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def organization(session_connection: psycopg.Connection, box: SecretBox) -> Organization:
    return Organization(session_connection, box)

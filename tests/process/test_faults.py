"""The database stopped, killed, failed over, cut off, slow, full, crowded or read-only, under requests that go on.

Each fault costs answers of 503 or 504 within a bound, none that is wrong, and no request without an answer; two
seconds after its end every request succeeds again, of the same processes.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cases_service.embedded.server import EmbeddedServer, join
from cases_service.embedded.supervisor import CLUSTER
from tests.factories import SECRET_KEY
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, stop, url_of
from tests.process.half_open import network
from tests.process.running import COMMAND, Service, environment, wait_for
from tests.process.traffic import RETURN_SECONDS, Outcome, Traffic
from tests.replication import ReplicaServer, data_directory
from tests.torture import times

# A request waits for a thread and twice for its turn, for a connection and for an answer: CASES_POOL_TIMEOUT is 1 here,
# CASES_STATEMENT_TIMEOUT too, and half a second goes to the machine.
BRISK = {"CASES_STATEMENT_TIMEOUT": "1", "CASES_SECRET_KEY": SECRET_KEY}
BOUND_SECONDS = 1 + 2 * (2 * 1 + 1 + 1) + 0.5
FEW = times(1, torture=20)
CUT_ONE = """
select pg_terminate_backend(pid)
from (select pid from pg_stat_activity where application_name = 'cases-service' order by random() limit 1) one
"""


class Report:
    """Checks what became of the requests during a fault, and adds a row to the table of `make torture`."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, fault: str, outcome: Outcome, service: Service) -> Outcome:
        self._record("fault", {"fault": fault} | outcome.as_row())
        assert outcome.wrong == []
        assert outcome.lost == []
        assert outcome.slowest < BOUND_SECONDS
        assert outcome.recovery < RETURN_SECONDS
        assert len(service.workers()) == 2, "a worker was lost"
        assert "unexpected_error" not in service.log
        return outcome


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    return Report(record_property)


@pytest.fixture
def traffic_of(template: Template) -> Callable[[Service], Traffic]:
    def traffic(service: Service) -> Traffic:
        service.wait_until_ready()
        return Traffic(service, template.path, template.header, results=3)

    return traffic


class Server:
    """The server of a data directory, which can be stopped and killed, and started again."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.url = url_of(data_dir)
        self.admin_url = url_of(data_dir, user="postgres")
        self._server: EmbeddedServer | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        earlier, self._server = self._server, join(self.data_dir, settings=FAST)
        if earlier is not None:
            earlier.leave()

    def stop(self) -> None:
        if self._server is not None:
            stop(self._server)
            self._server = None

    def kill(self) -> None:
        os.kill(int((self.data_dir / CLUSTER / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        self.stop()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()

    @contextmanager
    def killed(self) -> Iterator[None]:
        self.kill()
        yield
        self.start()

    def execute(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def server(data_dir: Path) -> Iterator[Server]:
    server = Server(data_dir)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def service(start: Callable[..., Service], server: Server) -> Service:
    return start(*serve_arguments(), DATABASE_URL=server.url, **BRISK)


def test_stopped(service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report) -> None:
    with traffic_of(service) as traffic:
        outcome = traffic.suffer(server.stopped, seconds=1.0, times=FEW)
    report("stopped", outcome, service)
    assert outcome.statuses["503"] > 0


def test_killed(service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report) -> None:
    with traffic_of(service) as traffic:
        report("killed -9", traffic.suffer(server.killed, seconds=0.5, times=FEW), service)


def test_restarted(service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report) -> None:
    with traffic_of(service) as traffic:
        report("restarted", traffic.suffer(server.stopped, seconds=0.0, times=FEW), service)


def test_failed_over_to_a_replica(
    start: Callable[..., Service], server: Server, traffic_of: Callable[[Service], Traffic], report: Report
) -> None:
    with data_directory() as elsewhere:
        assert server._server is not None
        with ReplicaServer(server._server, elsewhere) as replica:
            places = f"{server.data_dir}/socket,{elsewhere}/socket"
            url = f"host={places} port=5432,5432 user=postgres dbname=cases target_session_attrs=primary"
            service = start(*serve_arguments(), DATABASE_URL=url, **BRISK)

            @contextmanager
            def failed_over() -> Iterator[None]:
                server.kill()
                yield
                replica.execute("select pg_promote()")

            with traffic_of(service) as traffic:
                report("failed over", traffic.suffer(failed_over, seconds=0.5), service)


def test_connections_cut_one_by_one(
    service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report
) -> None:
    cuts = times(20, torture=200)

    @contextmanager
    def cutting() -> Iterator[None]:
        for _ in range(cuts):
            wait_for(lambda: server.execute(CUT_ONE))
            time.sleep(0.05)
        yield

    with traffic_of(service) as traffic:
        outcome = report("cut one by one", traffic.suffer(cutting, seconds=0.0), service)
    # Each read is repeated once, so a cut is noticed only where it meets the repetition, too.
    assert outcome.statuses["503"] <= cuts / 10


def test_slow(service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report) -> None:
    @contextmanager
    def locked() -> Iterator[None]:
        with psycopg.connect(server.admin_url) as connection:
            connection.execute("lock table cases in access exclusive mode")
            yield

    with traffic_of(service) as traffic:
        outcome = report("locked", traffic.suffer(locked, seconds=2.5, times=FEW), service)
    assert outcome.statuses["504"] > 0


def test_out_of_connections(
    start: Callable[..., Service], server: Server, traffic_of: Callable[[Service], Traffic], report: Report
) -> None:
    # A superuser would get in all the same.
    server.execute("create role visitor_cases login; grant pg_read_all_data to visitor_cases")
    url = make_conninfo(server.url, user="visitor_cases")
    service = start(*serve_arguments(), DATABASE_URL=url, **BRISK)

    @contextmanager
    def crowded() -> Iterator[None]:
        server.execute("alter role visitor_cases connection limit 0")
        server.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'visitor_cases'")
        yield
        server.execute("alter role visitor_cases connection limit -1")

    with traffic_of(service) as traffic:
        outcome = report("out of connections", traffic.suffer(crowded, seconds=1.0, times=FEW), service)
    assert outcome.statuses["503"] > 0


def test_read_only(service: Service, server: Server, traffic_of: Callable[[Service], Traffic], report: Report) -> None:
    @contextmanager
    def read_only() -> Iterator[None]:
        server.execute("alter system set default_transaction_read_only = on")
        server.execute("select pg_reload_conf()")
        server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cases-service'"
        )
        yield
        server.execute("alter system reset default_transaction_read_only")
        server.execute("select pg_reload_conf()")

    with traffic_of(service) as traffic:
        outcome = report("read-only", traffic.suffer(read_only, seconds=1.0), service)
    assert set(outcome.statuses) == {"200"}, "nothing that a request needs is written"


def test_half_open(
    start: Callable[..., Service], server: Server, traffic_of: Callable[[Service], Traffic], report: Report
) -> None:
    with network(server.data_dir / "socket" / ".s.PGSQL.5432") as net:
        url = f"host={net.database_host} port={net.database_port} user=postgres dbname=cases"
        hosts = f"localhost,{net.service_host}"
        command = [*net.prefix, *serve_arguments("0.0.0.0:0")]
        service = start(*command, DATABASE_URL=url, CASES_ALLOWED_HOSTS=hosts, **BRISK)
        service.host = net.service_host
        with traffic_of(service) as traffic:
            outcome = report("half-open", traffic.suffer(net.cut, seconds=5.0, times=FEW), service)
        assert outcome.statuses["503"] > 0


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Lend a small file system, or skip the test where none may be mounted."""
    with data_directory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_disk_full(
    start: Callable[..., Service],
    template: Template,
    place: Path,
    traffic_of: Callable[[Service], Traffic],
    report: Report,
) -> None:
    with small_disk(160) as disk:
        server = Server(template.copy(disk))
        server.start()
        ballast = disk / "ballast"
        service = start(*serve_arguments(), DATABASE_URL=server.url, **BRISK)
        big = place / "big.ndjson"
        lines = (
            {"type": "visitor", "id": str(uuid4()), "organization_id": template.organization_id, "external_id": str(i)}
            for i in range(60_000)
        )
        big.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

        def load() -> subprocess.CompletedProcess[str]:
            command, variables = [COMMAND, "load", str(big)], environment(DATABASE_URL=server.admin_url)
            return subprocess.run(command, env=variables, check=False, capture_output=True, text=True, timeout=60)

        @contextmanager
        def full() -> Iterator[None]:
            with ballast.open("wb") as file, suppress(OSError):
                while shutil.disk_usage(disk).free > 4 * 2**20:
                    file.write(bytes(2**20))
                    file.flush()
            ran = load()
            assert (ran.returncode, ran.stdout) == (75, ""), ran
            assert ran.stderr.count("\n") == 1
            assert "Traceback" not in ran.stderr
            yield
            ballast.unlink()
            server.start()

        with traffic_of(service) as traffic:
            report("disk full", traffic.suffer(full, seconds=0.5), service)
        assert server.execute("select count(*) from visitors") == [(1,)], "a part was loaded"
        assert load().returncode == 0
        assert server.execute("select count(*) from visitors") == [(60_001,)]
        server.stop()

"""Walks while many clients write, held case by case against what was committed, through a failover too."""

import itertools
import math
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import psycopg
import pytest

from cases_service.embedded.server import SERVICE_ROLE, EmbeddedServer, join
from cases_service.embedded.supervisor import SUPERUSER
from cases_service.store.cases import ORDERINGS
from tests.factories import SECRET_KEY, Organization, Visitor
from tests.process.conftest import serve_arguments
from tests.process.embedded_data import FAST, Template, crash, stop, url_of
from tests.process.running import PATIENCE, Answer, Service, read_answer, wait_for
from tests.process.traffic import PAUSE_SECONDS, REFUSALS, Outcome
from tests.process.walks import FILTERS, Collection, Filter, Judge, Page, Walk
from tests.process.writers import World, connector, serials_of, share
from tests.replication import ReplicaServer, data_directory
from tests.torture import times

WRITERS = times(6, torture=16)
WALKERS = times(4, torture=8)
WALKS_OF_EACH = times(4, torture=60)
ROUNDS = times(1, torture=6)
LAG_SECONDS = 1.0


class Walker:
    """Walks there and back, again and again, and repeats what is refused, as the contract says one may."""

    def __init__(self, service: Service, world: World, *, lag: float) -> None:
        self.walks: list[Walk] = []
        self.outcome = Outcome()
        self.last_refusal = -math.inf
        self._service = service
        self._world = world
        self._lag = lag
        self._random = random.Random()  # noqa: S311
        self._host = f"localhost:{service.port}"
        self._connection: socket.socket | None = None

    def walk(self, until: threading.Event) -> None:
        while not until.is_set():
            visitor, ordering = self._random.choice(self._world.visitors), self._random.choice(ORDERINGS)
            self.there_and_back(visitor, ordering, self._random.choice(FILTERS), self._random.randint(1, 9))

    def there_and_back(self, visitor: Visitor, ordering: str, only: Filter, page_size: int) -> None:
        """Walk from the first page to the last, and with pages of another size to the first again."""
        organization = visitor.organization
        collection = Collection(organization.id, visitor.external_id, ordering, only)
        first = f"{visitor.path}?ordering={ordering}&page_size={page_size}{only.query}"
        there = [self._page(first, organization)]
        self._follow("next", there, page_size, organization)
        back = there[-1:]
        self._follow("previous", back, self._random.randint(1, 9), organization)
        self.walks += [Walk(collection, there), Walk(collection, back, backward=True)]

    def _follow(self, link: str, pages: list[Page], page_size: int, organization: Organization) -> None:
        followed = set()
        while url := getattr(pages[-1], link):
            assert url not in followed, "a walk without end"
            followed.add(url)
            pages.append(self._page(re.sub(r"page_size=\d+", f"page_size={page_size}", url), organization))

    def _page(self, url: str, organization: Organization) -> Page:
        path = url.removeprefix(f"http://{self._host}")
        lines = [f"GET {path} HTTP/1.1", f"Host: {self._host}", f"Authorization: Token {organization.token}", "", ""]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            asked = time.monotonic()
            answer = self._ask("\r\n".join(lines).encode())
            answered = time.monotonic()
            self.outcome.slowest = max(self.outcome.slowest, answered - asked)
            if answer is not None and answer.status == 200:
                return Page(asked - self._lag, answered, **answer.json)
            self.last_refusal = asked
            time.sleep(PAUSE_SECONDS)
        raise AssertionError(f"refused for {PATIENCE} seconds\n{self._service}")

    def _ask(self, request: bytes) -> Answer | None:
        """Return an answer, None where there is none."""
        try:
            self._connection = self._connection or self._service.connect()
            self._connection.sendall(request)
            answer = read_answer(self._connection)
        except (OSError, EOFError) as error:
            self.outcome.lost.append(repr(error))
            self.close()
            return None
        self.outcome.statuses[str(answer.status)] += 1
        if answer.status != 200 and (answer.status, answer.json.get("code")) not in REFUSALS:
            self.outcome.wrong.append(f"{answer.status} {answer.body[:200]!r}")
        if answer.headers["connection"] == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Storm:
    """Writers and walkers at work together, and what became of their requests and walks."""

    def __init__(self, service: Service, connection: psycopg.Connection, url: str, *, lag: float = 0.0) -> None:
        self.world = World.make(connection)
        self.outcome = Outcome(tries=1)
        self.walks: list[Walk] = []
        self._lag = lag
        self._connect = connector(url)
        self._writers = share(self.world, self._connect, WRITERS)
        self._walkers = [Walker(service, self.world, lag=lag) for _ in range(WALKERS)]

    @property
    def in_doubt(self) -> int:
        """Commits that were sent and never acknowledged."""
        return sum(writer.in_doubt for writer in self._writers)

    def rage(self, fault: Callable[[], object] | None = None) -> None:
        """Let everybody work, and something happen in the middle of it."""
        for writer in self._writers:
            writer.populate()
        stop = threading.Event()
        with ThreadPoolExecutor(WRITERS + WALKERS) as pool:
            jobs = [pool.submit(writer.write, stop) for writer in self._writers]
            jobs += [pool.submit(walker.walk, stop) for walker in self._walkers]
            try:
                self._wait_for_walks(jobs)
                if fault is not None:
                    fault()
                    ended = time.monotonic()
                    self._wait_for_walks(jobs)
                    self.outcome.recovery = max(0.0, *(walker.last_refusal - ended for walker in self._walkers))
            finally:
                stop.set()
            for job in jobs:
                job.result()

    def judge(self) -> Outcome:
        """Walk once more, now that all is quiet, and hold every walk and the database against what was committed."""
        time.sleep(self._lag)
        quiet = self._walkers[0]
        for visitor, ordering in itertools.product(self.world.visitors, ORDERINGS):
            quiet.there_and_back(visitor, ordering, FILTERS[0], page_size=7)
        for walker in self._walkers:
            walker.close()
            self.outcome.add(walker.outcome)
            self.walks += walker.walks
        judge = Judge(self.world.journal)
        verdicts = [judge.judge(walk) for walk in self.walks]
        self.outcome.wrong += [problem for verdict in verdicts for problem in verdict.wrong]
        assert sum(verdict.lasting for verdict in verdicts) > 0, "nothing was promised"
        assert sum(verdict.changed for verdict in verdicts) > 0, "nothing was written"
        committed = {key: history.last and history.last.serial for key, history in self.world.journal.histories.items()}
        with self._connect() as connection:
            assert serials_of(connection, committed) == committed
        return self.outcome

    def _wait_for_walks(self, jobs: list[Future[None]]) -> None:
        goals = [len(walker.walks) + WALKS_OF_EACH for walker in self._walkers]

        def are_done() -> bool:
            return all(len(walker.walks) >= goal for walker, goal in zip(self._walkers, goals, strict=True))

        wait_for(lambda: are_done() or any(job.done() for job in jobs), seconds=10 * PATIENCE)


class Report:
    """Adds a row to the table of `make torture`, and checks that nothing was wrong and nothing without an answer."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, fault: str, outcomes: list[Outcome]) -> None:
        total = Outcome()
        for outcome in outcomes:
            total.add(outcome)
        self._record("fault", {"fault": fault} | total.as_row())
        assert total.wrong == []
        assert total.lost == []


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    return Report(record_property)


def test_walks_while_many_write(
    serve: Callable[..., Service], connection: psycopg.Connection, database_url: str, report: Report
) -> None:
    service = serve()
    service.wait_until_ready()
    outcomes = []
    for _ in range(ROUNDS):
        storm = Storm(service, connection, database_url)
        storm.rage()
        outcomes.append(storm.judge())
    report("many write", outcomes)


@contextmanager
def primary_with_replica(template: Template) -> Iterator[tuple[EmbeddedServer, ReplicaServer]]:
    with data_directory() as place, data_directory() as elsewhere:
        primary = join(template.copy(place), settings=FAST)
        try:
            with ReplicaServer(primary, elsewhere) as replica:
                yield primary, replica
        finally:
            stop(primary)


def held_up_sending(primary: EmbeddedServer, replica: ReplicaServer) -> AbstractContextManager[None]:
    """Let commits wait for a replica that gets nothing of them: they are lost, and nobody may have seen them."""
    return paused(primary.conninfo, "select pid from pg_stat_replication")


def held_up_receiving(primary: EmbeddedServer, replica: ReplicaServer) -> AbstractContextManager[None]:
    """Let commits wait for a replica that gets them and does not say so: they hold, and nobody knows."""
    return paused(replica.url, "select pid from pg_stat_wal_receiver")


def not_held_up(primary: EmbeddedServer, replica: ReplicaServer) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def paused(url: str, question: str) -> Iterator[None]:
    """Stop a process of a server for some time."""
    with psycopg.connect(url) as connection:
        [(number,)] = connection.execute(question.encode()).fetchall()
    os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


HOLDS = (held_up_receiving, held_up_sending, not_held_up)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to find all processes of a server")
def test_walks_through_a_failover(start: Callable[..., Service], template: Template, report: Report) -> None:
    outcomes = []
    for number in range(ROUNDS):
        with primary_with_replica(template) as (primary, replica):
            wait_for_replica(primary)
            outcomes.append(storm_through_failover(start, primary, replica, HOLDS[number % len(HOLDS)]))
    report("many write, failed over", outcomes)


def storm_through_failover(
    start: Callable[..., Service],
    primary: EmbeddedServer,
    replica: ReplicaServer,
    hold_up: Callable[[EmbeddedServer, ReplicaServer], AbstractContextManager[None]],
) -> Outcome:
    places = f"host={primary.data_dir}/socket,{replica.data_dir}/socket port=5432,5432 dbname=cases"
    url, admin_url = (f"{places} target_session_attrs=primary user={role}" for role in (SERVICE_ROLE, SUPERUSER))
    service = start(*serve_arguments(), DATABASE_URL=url, CASES_SECRET_KEY=SECRET_KEY)
    service.wait_until_ready()
    with psycopg.connect(admin_url, autocommit=True) as connection:
        storm = Storm(service, connection, admin_url)

    moments = []

    def fail_over() -> None:
        with hold_up(primary, replica):
            time.sleep(0.1)
            moments.append(time.monotonic())
            crash(primary.data_dir)
        time.sleep(0.5)
        replica.execute("select pg_promote()")
        moments.append(time.monotonic())

    storm.rage(fail_over)
    outcome = storm.judge()
    before, after = moments
    assert any(walk.pages[0].asked < before < after < walk.pages[-1].answered for walk in storm.walks)
    assert storm.in_doubt > 0 or hold_up is not_held_up
    assert service.end() == 0
    return outcome


def wait_for_replica(primary: EmbeddedServer) -> None:
    """Let each commit wait for the replica from now on, so that no failover loses one."""
    with psycopg.connect(primary.conninfo, autocommit=True) as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
        state = "select sync_state from pg_stat_replication"
        wait_for(lambda: connection.execute(state).fetchall() == [("sync",)])


def test_walks_over_a_replica_that_is_late_now_and_then(
    start: Callable[..., Service], template: Template, report: Report
) -> None:
    outcomes = []
    with primary_with_replica(template) as (primary, replica):
        service = start(
            *serve_arguments(),
            DATABASE_URL=primary.service_conninfo,
            CASES_SECRET_KEY=SECRET_KEY,
            CASES_READ_DATABASE_URL=url_of(replica.data_dir),
            CASES_READ_MAX_LAG=f"{LAG_SECONDS}",
        )
        service.wait_for_log("replica_in_use")

        def fall_behind() -> None:
            with replica.paused():
                time.sleep(1.5 * LAG_SECONDS)
            service.wait_for_log("replica_left_out")

        for _ in range(ROUNDS):
            with psycopg.connect(primary.conninfo, autocommit=True) as connection:
                storm = Storm(service, connection, primary.conninfo, lag=LAG_SECONDS)
            storm.rage(fall_behind)
            outcomes.append(storm.judge())
    report("many write, a late replica", outcomes)

"""Starts and ends the contestants: the same database, machine, number of processes and of threads for each."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode
from uuid import UUID

import psutil

from benchmarks.credentials import Credentials
from benchmarks.dataset import service_url, writer_url
from benchmarks.load import Client, NoAnswerError
from cases_service.cases.pagination import Collection, Cursor, Position, visitor_tag

ROOT: Final = Path(__file__).parent.parent
_START_SECONDS: Final = 60
_END_SECONDS: Final = 20
_BATCHES: Final = 20

EVERY_PART: Final = frozenset({"detail", "tail", "curves"})

Place = tuple[int, UUID]
"""Sort value in microseconds, and id, of the case that a page begins behind."""


@dataclass(frozen=True)
class Contestant:
    """How to start an application, and how its cursors are written for a visitor's page by creation."""

    name: str
    title: str
    command: Callable[[str, int, int], Sequence[str]]
    cursor: Callable[[UUID, UUID, Place], str]
    serves: bool = False
    """Whether it logs in as a role for which row security holds; the peers read as the owner of the tables may."""
    joins_every_round: bool = False
    """Whether it is in every round; a peer is in some."""
    parts: frozenset[str] = EVERY_PART
    """The measures that it is in, besides that of pages."""


def tree_cpu(root: psutil.Process) -> float:
    """Return the seconds of CPU time that a process and its children have taken, those that have ended included."""
    found = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found += times.user + times.system + times.children_user + times.children_system
    return found


class Running:
    """A contestant that listens."""

    def __init__(self, contestant: Contestant, address: str, process: "subprocess.Popen[bytes]") -> None:
        self.contestant = contestant
        self.address = address
        self.process = process

    def tree(self) -> list[psutil.Process]:
        """Return its processes."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu(self) -> float:
        """Return the seconds of CPU time that its processes have taken."""
        return tree_cpu(psutil.Process(self.process.pid))

    @contextmanager
    def clients(self, number: int, workers: int, warm: bytes) -> Iterator[list[Client]]:
        """Give connections of which each worker has as many, worker by worker in turn, so that none idles by chance."""
        with ExitStack() as stack:
            groups: dict[int, list[Client]] = {}
            wanted = number // workers
            for _ in range(_BATCHES):
                for client in self._batch(stack, number, warm):
                    groups.setdefault(self._worker(client), []).append(client)
                if sum(len(group) >= wanted for group in groups.values()) >= workers:
                    break
            turns = zip_longest(*(group[:wanted] for group in groups.values()))
            chosen = [client for turn in turns for client in turn if client is not None]
            spare = [client for group in groups.values() for client in group[wanted:]]
            chosen += spare[: number - len(chosen)]
            for client in spare:
                if client not in chosen:
                    client.socket.close()
            yield chosen

    def _batch(self, stack: ExitStack, number: int, warm: bytes) -> list[Client]:
        clients = []
        for _ in range(number):
            client = stack.enter_context(Client(self.address))
            client.ask(warm, timeout=30)
            clients.append(client)
        return clients

    def _worker(self, client: Client) -> int:
        """Return the process that has accepted a connection, 0 where the system does not tell."""
        for process in self.tree():
            try:
                connections = process.net_connections(kind="tcp4")
            except psutil.Error:
                continue
            if any(c.raddr and c.raddr.port == client.local_port for c in connections):
                return int(process.pid)
        return 0


def _gunicorn(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "gunicorn", *arguments)


def _service(address: str, _workers: int, _threads: int) -> Sequence[str]:
    return (str(Path(sys.executable).with_name("cases-service")), "serve", "--bind", address)


def _module(name: str) -> Callable[[str, int, int], Sequence[str]]:
    """Return how a contestant is started that is a WSGI application under the service's gunicorn configuration."""

    def command(_address: str, _workers: int, _threads: int) -> Sequence[str]:
        return _gunicorn("-c", str(ROOT / "gunicorn.conf.py"), f"benchmarks.contestants.{name}:app")

    return command


def _drf(address: str, workers: int, threads: int) -> Sequence[str]:
    return _gunicorn(
        *("--worker-class", "gthread", "--workers", str(workers), "--threads", str(threads), "--bind", address),
        *("--keep-alive", "75", "--no-control-socket", "benchmarks.contestants.drf:application"),
    )


def _fastapi(address: str, workers: int, _threads: int) -> Sequence[str]:
    host, _, port = address.rpartition(":")
    return (
        *(sys.executable, "-m", "uvicorn", "--workers", str(workers), "--host", host, "--port", port),
        *("--timeout-keep-alive", "75", "--no-access-log", "benchmarks.contestants.fastapi_peer:app"),
    )


def _service_cursor(organization_id: UUID, visitor_id: UUID, place: Place) -> str:
    cursor = Cursor(Position(*place), backward=False, visitor_tag=visitor_tag(visitor_id))
    return cursor.encode(Collection(organization_id, "created_at"))


def _floor_cursor(_organization_id: UUID, _visitor_id: UUID, place: Place) -> str:
    return f"after_{place[0]}_{place[1]}"


def _drf_cursor(_organization_id: UUID, _visitor_id: UUID, place: Place) -> str:
    return quote(base64.b64encode(urlencode({"p": str(_time(place))}).encode()))


def _fastapi_cursor(_organization_id: UUID, _visitor_id: UUID, place: Place) -> str:
    return quote(base64.urlsafe_b64encode(f"after {_time(place).isoformat()} {place[1]}".encode()))


def _time(place: Place) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=place[0])


CONTESTANTS: Final = (
    Contestant("service", "the service", _service, _service_cursor, serves=True, joins_every_round=True),
    Contestant(
        "floor", "floor: WSGI + SQL + orjson", _module("floor"), _floor_cursor, serves=True, joins_every_round=True
    ),
    Contestant(
        "floor_plain",
        "floor-plain: its own plain SQL",
        _module("floor_plain"),
        _floor_cursor,
        joins_every_round=True,
        parts=frozenset({"detail", "curves"}),
    ),
    Contestant(
        "read_committed",
        "the service in read committed",
        _module("read_committed"),
        _service_cursor,
        serves=True,
        joins_every_round=True,
        parts=frozenset(),
    ),
    Contestant(
        "postgres_json",
        "WSGI + JSON by PostgreSQL",
        _module("postgres_json"),
        _floor_cursor,
        parts=frozenset({"detail", "curves"}),
    ),
    Contestant("fastapi", "FastAPI + SQLAlchemy", _fastapi, _fastapi_cursor),
    Contestant("drf", "Django REST framework", _drf, _drf_cursor),
)


@contextmanager
def run(
    contestant: Contestant, credentials: Credentials, *, workers: int, threads: int, log: Path
) -> Iterator[Running]:
    """Start a contestant, give it once it answers, and end it."""
    address = _free_address()
    settings = {name: value for name, value in os.environ.items() if not name.startswith("CASES_")}
    environment = {
        **settings,
        "DATABASE_URL": service_url(credentials.database_url) if contestant.serves else credentials.database_url,
        "CASES_WRITE_DATABASE_URL": writer_url(credentials.database_url),
        "CASES_SECRET_KEY": credentials.secret_key,
        "CASES_BIND": address,
        "CASES_WORKERS": str(workers),
        "CASES_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
    }
    command = contestant.command(address, workers, threads)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  our own commands
            command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_until_it_answers(process, address, credentials.request("ordinary-1"), log)
        yield Running(contestant, address, process)
    finally:
        _end(process)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", address: str, request: bytes, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with Client(address) as client:
                if client.ask(request, timeout=10).status == 200:  # noqa: PLR2004
                    return
        except (OSError, NoAnswerError):
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{log.stem} does not answer: see {log.relative_to(ROOT)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children, each by its id."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        tree = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(tree, timeout=5)[1]:
        child.kill()

"""Starts the programs that operators start, and talks to them as clients do."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

PROJECT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
COMMAND = str(SCRIPTS / "cases-service")
GUNICORN = str(SCRIPTS / "gunicorn")
LOOPBACK = "127.0.0.1"
PATIENCE = 120.0


class Answer(NamedTuple):
    """What came back for a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running:
    """A program that runs until the test ends, with its output in files."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], directory: Path, **options: Any) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}.out", directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                process_group=0,
                # A test runner may ignore what its children are to obey.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
                **options,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def log(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    @property
    def port(self) -> int:
        """Return the port, once gunicorn has said it."""
        return int(self.wait_for_log(r"Listening at: http://[^ ,]*:(\d+)[ ,]")[1])

    @property
    def admin_port(self) -> int:
        """Return the port of the address for operators, where there is one, once gunicorn has said it."""
        return int(self.wait_for_log(r"Listening at: http://[^ ,]*,http://[^ ,]*:(\d+) ")[1])

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        return wait_for(lambda: re.search(pattern, self.log), lambda: self.process.poll() is not None, self)

    def processes(self) -> list[int]:
        """Return the numbers of gunicorn's master and of its workers."""
        return [int(self.wait_for_log(r"Listening at: .*\((\d+)\)")[1]), *self.workers()]

    def workers(self) -> list[int]:
        return [int(number) for number in re.findall(r"Booting worker with pid: (\d+)", self.log)]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def interrupt(self) -> None:
        """Do what a terminal does on Ctrl-C: tell every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __str__(self) -> str:
        return f"status {self.process.poll()}\n{self.out}\n{self.log}"


class Service(Running):
    """gunicorn with the application, and a client of it."""

    host = LOOPBACK

    def curl(self, path: str, *options: str, port: int | None = None) -> Answer:
        """Request a path with curl."""
        url = self.url(path) if port is None else f"http://{LOOPBACK}:{port}{path}"
        command = ["curl", "--silent", "--show-error", "--include", "--max-time", "60", *options, url]
        ran = subprocess.run(command, check=False, capture_output=True)
        assert ran.returncode == 0, f"{ran.stderr.decode()}\n{self}"
        head, _, body = ran.stdout.partition(b"\r\n\r\n")
        return parse_answer(head, body)

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)

    def send(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own, and return all that comes until it is closed."""
        with self.connect() as client:
            client.sendall(request)
            return read_all(client)

    def wait_until_ready(self) -> None:
        wait_for(lambda: self.curl("/readyz").status == 200, lambda: self.process.poll() is not None, self)


def read_all(client: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data


def read_answer(client: socket.socket) -> Answer:
    """Read one answer from a connection that may be kept."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(client)
    head, _, body = data.partition(b"\r\n\r\n")
    answer = parse_answer(head, body)
    length = int(answer.headers["content-length"])
    while len(body) < length:
        body += _more(client)
    assert len(body) == length, "more came than was asked for"
    return answer._replace(body=body)


def _more(client: socket.socket) -> bytes:
    part = client.recv(65536)
    if not part:
        raise EOFError("closed in the middle of an answer")
    return part


def parse_answer(head: bytes, body: bytes) -> Answer:
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return Answer(int(lines[0].split()[1]), headers, body)


def wait_for(
    find: Callable[[], T | None],
    is_hopeless: Callable[[], bool] = lambda: False,
    story: object = "",
    seconds: float = PATIENCE,
) -> T:
    """Return what is found as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        ended = is_hopeless()
        if found := find():
            return found
        assert not ended, story
        assert time.monotonic() < deadline, story
        time.sleep(0.02)


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a user who has set these variables and no other of ours."""
    kept = ("PATH", "HOME", "LANG", "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in kept if name in os.environ} | variables


def is_alive(number: int) -> bool:
    """Tell whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(number, 0)
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return Path("/proc/self").exists() is False
    except ProcessLookupError:
        return False
    return state != "Z"


@contextlib.contextmanager
def clients(service: Service, number: int, request: bytes) -> Iterator[list[socket.socket]]:
    """Connect clients that send this and nothing else for now."""
    with contextlib.ExitStack() as stack:
        connected = [stack.enter_context(service.connect()) for _ in range(number)]
        for client in connected:
            client.sendall(request)
        yield connected

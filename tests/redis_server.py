"""A Redis of one's own, where the machine has the program."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

PROGRAM = shutil.which("redis-server")
LOOPBACK = "127.0.0.1"
PATIENCE = 30.0

needs_redis = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")


class RedisServer:
    """A server on a port of its own that asks for a password, and can be stopped, frozen and started again."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            self.port: int = free.getsockname()[1]
        self.password = "redis-canary-6f1e"
        self.url = f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self._directory = directory
        self.start()

    def start(self) -> None:
        options = ["--bind", LOOPBACK, "--port", str(self.port), "--requirepass", self.password, "--save", ""]
        # Its output would be a pipe that nobody reads.
        self.process = subprocess.Popen(
            [str(PROGRAM), *options, "--dir", str(self._directory)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return
            assert time.monotonic() < deadline, self.process.poll()
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def commands(self) -> int:
        """Return how many commands were sent to it, this one included."""
        return int(self.client.info("stats")["total_commands_processed"])


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    directory = Path(tempfile.mkdtemp(prefix="cases-redis-"))
    server = RedisServer(directory)
    try:
        yield server
    finally:
        server.client.close()
        server.stop()
        shutil.rmtree(directory)

"""How the service takes its address while the workers of a killed predecessor still hold it."""

import socket
from types import SimpleNamespace

import pytest

from cases_service.server import launch


class Clock:
    """A clock that passes only while somebody sleeps; the predecessor exits at a time."""

    def __init__(self, predecessor: socket.socket, exits: float) -> None:
        self.predecessor, self.exits, self.seconds = predecessor, exits, 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds >= self.exits:
            self.predecessor.close()


def listen_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as predecessor:
        host, port = predecessor.getsockname()
        clock = Clock(predecessor, seconds)
        monkeypatch.setattr(launch, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
        return launch.listen(f"{host}:{port}")


def test_it_waits_for_a_predecessor_that_a_busy_machine_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_after(4.5, monkeypatch) as listener:
        assert listener.getsockname()[1] > 0


def test_it_gives_up_on_an_address_that_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(launch.ListenError, match="Address already in use"):
        listen_after(60, monkeypatch)

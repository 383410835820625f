"""Visitors who ask all the time while something bad happens, and what became of each of their requests."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.process.running import Service, read_answer, wait_for

PAUSE_SECONDS = 0.01
RETURN_SECONDS = 2.0
REFUSALS = {(503, "unavailable"), (503, "overloaded"), (504, "timeout")}


@dataclass
class Outcome:
    """What became of requests: `wrong` is an answer that nobody may give, `lost` a request without any."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    slowest: float = 0.0
    tries: int = 0
    recovery: float = 0.0
    """The longest time from the end of a fault to the last answer that is not 200."""

    @property
    def requests(self) -> int:
        return sum(self.statuses.values()) + len(self.lost)

    def add(self, other: Self) -> None:
        """Count what became of other requests, too."""
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.lost += other.lost
        self.slowest = max(self.slowest, other.slowest)
        self.tries += other.tries
        self.recovery = max(self.recovery, other.recovery)

    def as_row(self) -> dict[str, Any]:
        return {
            "times": self.tries,
            "requests": self.requests,
            "answers": " ".join(f"{status}:{number}" for status, number in sorted(self.statuses.items())),
            "wrong": len(self.wrong),
            "lost": len(self.lost),
            "slowest s": f"{self.slowest:.2f}",
            "back after s": f"{self.recovery:.2f}",
        }


class Traffic:
    """Asks for the cases of a visitor in several threads, half of them on connections that they keep."""

    def __init__(self, service: Service, path: str, header: str, results: int, threads: int = 6) -> None:
        self.outcome = Outcome()
        self._service = service
        self._results = results
        host = f"Host: localhost:{service.port}"
        self._request = f"GET {path} HTTP/1.1\r\n{host}\r\n{header}\r\n\r\n".encode()
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(threads)]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._last_refusal = 0.0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def suffer(self, fault: Callable[[], AbstractContextManager[None]], *, seconds: float, times: int = 1) -> Outcome:
        """Let a fault happen and end, again and again, and check that requests are answered by 200 in between."""
        for _ in range(times):
            self.wait_for_answers(20)
            with fault():
                time.sleep(seconds)
            ended = time.monotonic()
            time.sleep(RETURN_SECONDS)
            self.wait_for_answers(20)
            self.outcome.recovery = max(self.outcome.recovery, self._last_refusal - ended)
            self.outcome.tries += 1
        return self.outcome

    def wait_for_answers(self, number: int) -> None:
        until = self.outcome.statuses["200"] + number
        wait_for(lambda: self.outcome.statuses["200"] >= until, story=self._service)

    def _ask(self, keeps: bool) -> None:
        connection = None
        while not self._stopping.wait(PAUSE_SECONDS):
            began = time.monotonic()
            try:
                connection = connection or self._service.connect()
                connection.sendall(self._request)
                answer = read_answer(connection)
            except (OSError, EOFError) as error:
                with self._lock:
                    self.outcome.lost.append(repr(error))
                connection = None
                continue
            self._note(answer.status, answer.body, began)
            if not keeps or answer.headers["connection"] == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _note(self, status: int, body: bytes, began: float) -> None:
        now = time.monotonic()
        document = json.loads(body)
        is_right = status == 200 and len(document["results"]) == self._results
        with self._lock:
            self.outcome.statuses[str(status)] += 1
            self.outcome.slowest = max(self.outcome.slowest, now - began)
            if is_right:
                return
            # What was asked before the end of a fault may still be refused after it.
            self._last_refusal = began
            if (status, document.get("code")) not in REFUSALS:
                self.outcome.wrong.append(f"{status} {body[:200]!r}")

"""Threads that are there before the first request, and that nobody waits for at the end.

Those of `concurrent.futures` start with the work that needs them, so that a signal's handler can interrupt the start of
one, and the interpreter waits for each of them before it ends, whatever it is doing.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """A number of threads that work off what they are given, in its order."""

    def __init__(self, number: int, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for place in range(number):
            threading.Thread(target=self._run, name=f"{name}-{place}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Have a thread do this as soon as one is free. It must not raise."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()

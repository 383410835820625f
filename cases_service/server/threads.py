"""A thread pool whose threads start before the first request and are not joined at exit.

`concurrent.futures` starts a thread with the first work for it, where a signal handler can interrupt the start, and the
interpreter joins all threads before it exits, whatever they are doing.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """A fixed number of threads that process work in the order of submission."""

    def __init__(self, number: int, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for place in range(number):
            threading.Thread(target=self._run, name=f"{name}-{place}", daemon=True).start()

    def submit(self, work: Callable[[], None]) -> None:
        """Run this in a thread as soon as one is free. It must not raise."""
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()

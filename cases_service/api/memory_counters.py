"""Counts requests in memory for the sliding windows of `limits`: bounded, and without scans for expired counts.

The library's own storage scans every key after almost every request, so that each new subject slows down all requests.
"""

import threading
import time
from collections import OrderedDict
from math import floor
from typing import Final

from limits.storage import SlidingWindowCounterSupport, Storage

MOST_SUBJECTS: Final = 50_000  # of a limit in a window; one takes some 300 bytes


class _Windows:
    """The counts of one limit in the current and the previous window. Older ones do not count."""

    def __init__(self) -> None:
        self.number = 0
        self.current: OrderedDict[str, int] = OrderedDict()
        self.previous: OrderedDict[str, int] = OrderedDict()

    def move_to(self, number: int) -> None:
        """Drop expired windows as a whole. After a jump of the clock nothing is left."""
        if number == self.number:
            return
        self.previous = self.current if number == self.number + 1 else OrderedDict()
        self.current = OrderedDict()
        self.number = number

    def add(self, key: str, amount: int, most: int) -> None:
        """Count; if the window is full, forget the subject that was counted least recently."""
        self.current[key] = self.current.get(key, 0) + amount
        self.current.move_to_end(key)
        if len(self.current) > most:
            self.current.popitem(last=False)


class MemoryCounters(Storage, SlidingWindowCounterSupport):
    """A storage for the sliding windows of `limits`, and for no other strategy."""

    STORAGE_SCHEME = None

    def __init__(self, *, most_subjects: int = MOST_SUBJECTS) -> None:
        super().__init__(None)
        self._most_subjects = most_subjects
        self._lock = threading.Lock()
        self._limits: dict[tuple[str, int], _Windows] = {}

    def __len__(self) -> int:
        """Return how many counts are kept."""
        return sum(len(windows.current) + len(windows.previous) for windows in self._limits.values())

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count, unless that would exceed the limit; return whether it was counted."""
        with self._lock:
            previous, previous_seconds, current, _ = self._look(key, expiry)
            if floor(previous * previous_seconds / expiry + current) + amount > limit:
                return False
            self._windows(key, expiry).add(key, amount, self._most_subjects)
            return True

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Return count and remaining seconds of the previous window, then of the current one."""
        with self._lock:
            return self._look(key, expiry)

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget a subject."""
        with self._lock:
            windows = self._windows(key, expiry)
            windows.current.pop(key, None)
            windows.previous.pop(key, None)

    def _look(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        now = time.time()
        windows = self._windows(key, expiry)
        windows.move_to(int(now // expiry))
        left = expiry - now % expiry
        previous = windows.previous.get(key, 0)
        return previous, left if previous else 0.0, windows.current.get(key, 0), left + expiry

    def _windows(self, key: str, expiry: int) -> _Windows:
        """Return the windows of the key's limit. Keys read NAMESPACE/KIND/SUBJECT/LIMIT."""
        kind = key.split("/", 2)[1]
        return self._limits.setdefault((kind, expiry), _Windows())

    @property
    def base_exceptions(self) -> type[Exception]:
        """No operation fails."""
        return ValueError

    def check(self) -> bool:
        """Tell whether the storage works."""
        return True

    def reset(self) -> int:
        """Forget all counts, and return how many there were."""
        with self._lock:
            forgotten = len(self)
            self._limits.clear()
            return forgotten

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Belongs to another strategy."""
        raise NotImplementedError

    def get(self, key: str) -> int:
        """Belongs to another strategy."""
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        """Belongs to another strategy."""
        raise NotImplementedError

    def clear(self, key: str) -> None:
        """Belongs to another strategy."""
        raise NotImplementedError

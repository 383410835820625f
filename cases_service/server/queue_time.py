"""Measures how long a request waited in the queue before a thread took it."""

import threading
from time import monotonic
from typing import Final


class Arrival(threading.local):
    """When this thread's request was complete, by `monotonic`; None if no worker has set it."""

    at: float | None = None

    @property
    def seconds_waited(self) -> float:
        """How long ago that was, or 0."""
        return 0.0 if self.at is None else monotonic() - self.at


arrival: Final = Arrival()

"""Knows how long the request that a thread handles had waited before the thread took it."""

import threading
from time import monotonic
from typing import Final


class Arrival(threading.local):
    """When the request that this thread handles was there whole, by `monotonic`; None where no worker has said so."""

    at: float | None = None

    @property
    def seconds_waited(self) -> float:
        """How long ago that was, or 0."""
        return 0.0 if self.at is None else monotonic() - self.at


arrival: Final = Arrival()

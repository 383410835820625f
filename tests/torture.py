"""How often the tests of faults try each: a few times in `make test`, many times in `make torture`."""

import os

LONG = os.environ.get("CASES_TEST_TORTURE", "") == "1"


def times(usual: int, *, torture: int) -> int:
    """Return how often to try something."""
    return torture if LONG else usual

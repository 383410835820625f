"""Which characters of a text a terminal obeys instead of showing them, and how they are shown instead."""

import re
from typing import Final

# C0 and C1 controls, separators of lines, what turns the direction of text, and halves of surrogate pairs.
_OBEYED: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def has_controls(text: str) -> bool:
    """Return whether a text has characters that a terminal obeys."""
    return _OBEYED.search(text) is not None


def printable(text: str) -> str:
    r"""Return a text on one line, with what a terminal obeys in escapes such as `\x1b`."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)

"""Escapes the characters of a text that would control a terminal."""

import re
from typing import Final

# C0 and C1 controls, line separators, directional formatting, and lone surrogates.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def has_controls(text: str) -> bool:
    """Tell whether a text has characters that would control a terminal."""
    return _CONTROLS.search(text) is not None


def printable(text: str) -> str:
    r"""Return a text on one line, with control characters as escapes such as `\x1b`."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)

"""Opens missing standard streams, so that no other file gets their descriptors.

No data is lost silently: reading from a missing standard input fails, and so does writing to a missing standard output.
"""

import os
import sys
from typing import Final

# Reversed for the first two, so that using them fails (EBADF).
_MODES: Final = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)


def open_missing() -> None:
    """Open the missing streams. Call it before opening any other file, which would get their numbers."""
    for number, mode in enumerate(_MODES):
        if not _is_open(number):
            os.open(os.devnull, mode)  # gets the lowest free number
            os.set_inheritable(number, True)  # noqa: FBT003  the only argument
    # The interpreter has set missing streams to None, and printing to None fails silently.
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def is_input_open() -> bool:
    """Tell whether standard input can be read."""
    try:
        os.read(0, 0)
    except OSError:
        return False
    return True


def finish_output() -> OSError | None:
    """Flush standard output; on failure, discard the rest and return the error.

    Otherwise the interpreter would flush again at exit, and fail with its own message and exit status.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return error
    return None

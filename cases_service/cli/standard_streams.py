"""Gives a program the standard streams that it was started without, so that nothing else takes their descriptors.

What would be lost is refused: reading from a stream that is missing fails, and so does writing to standard output.
"""

import io
import os
import sys
from typing import Final

# The wrong way round for the first two, so that using them is an error (EBADF).
_MODES: Final = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)


def open_missing() -> None:
    """Open those that are missing. Has to come before anything else is opened, which would get their numbers."""
    for number, mode in enumerate(_MODES):
        if not _is_open(number):
            os.open(os.devnull, mode)  # gets the lowest number that is free
            os.set_inheritable(number, True)  # noqa: FBT003  the only argument
    # Where they were missing, the interpreter has set these to None, and printing to None fails silently.
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
    """Tell whether there is a standard input to read from."""
    try:
        os.read(sys.stdin.fileno(), 0)
    except io.UnsupportedOperation:  # something in memory stands in for it
        return True
    except OSError:
        return False
    return True


def finish_output() -> OSError | None:
    """Write what standard output still holds back; where that fails, drop it and return why.

    The interpreter would try it once more as it ends, with a message of its own and another exit status.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return error
    return None

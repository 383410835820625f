"""Gives memory back to the system after a large answer, which the C library keeps for later.

glibc keeps an arena for each thread. What an arena once grew by for a large block it gives back only from a size on
that it raises with the blocks it sees, and `malloc_trim` passes over the end of an arena. With fixed thresholds large
blocks are the system's own, and go back at once.
"""

import ctypes
import gc
from typing import Final

LARGE_BYTES: Final = 1024 * 1024
"""A block, and so an answer or a body, of this size goes back at once."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LIBC: Final = ctypes.CDLL(None)
_IS_GLIBC: Final = hasattr(_LIBC, "mallopt") and hasattr(_LIBC, "malloc_trim")


def keep_no_large_blocks() -> None:
    """Let the system have large blocks as soon as they are free; for this process, once."""
    if _IS_GLIBC:
        _LIBC.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return what else is free to the system: some milliseconds."""
    gc.collect()
    if _IS_GLIBC:
        _LIBC.malloc_trim(0)

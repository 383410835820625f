"""Returns memory to the system after a large answer, which the C library would keep.

glibc has an arena for each thread. It returns an arena's free end only above a threshold, which grows with the blocks
it has seen, and `malloc_trim` skips the end of an arena. With fixed thresholds, large blocks are mapped individually
and returned at once.
"""

import ctypes
import gc
from typing import Final

LARGE_BYTES: Final = 1024 * 1024
"""Blocks of this size, such as a large answer or body, are returned at once."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LIBC: Final = ctypes.CDLL(None)
_IS_GLIBC: Final = hasattr(_LIBC, "mallopt") and hasattr(_LIBC, "malloc_trim")


def keep_no_large_blocks() -> None:
    """Configure this process to return large blocks as soon as they are freed. Called once."""
    if _IS_GLIBC:
        _LIBC.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return all other free memory to the system. Takes some milliseconds."""
    gc.collect()
    if _IS_GLIBC:
        _LIBC.malloc_trim(0)

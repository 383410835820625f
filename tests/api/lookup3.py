"""Finds a text of a given hash: PostgreSQL's `hashtextextended` is Jenkins' lookup3, each step of which can be undone.

https://github.com/postgres/postgres/blob/REL_18_STABLE/src/common/hashfn.c
"""

import struct
from itertools import count

State = tuple[int, int, int]

_MASK = 2**32 - 1
_BLOCK = struct.Struct("<III")


def text_with_hash(wanted: int, *, beginning: str, seed: int) -> str:
    """Return an ASCII text of a hash modulo 2**64: a beginning of a multiple of twelve characters, and twelve more."""
    data = beginning.encode("ascii")
    assert len(data) % _BLOCK.size == 0
    state = _state_after(data, seed, len(data) + _BLOCK.size)
    for a in count():
        end = _unmixed(_unfinished((a, wanted >> 32, wanted & _MASK)))
        block = _BLOCK.pack(*((one - other) & _MASK for one, other in zip(end, state, strict=True)))
        if block.isascii() and block.decode("ascii").isprintable():
            break
    return (data + block).decode("ascii")


def _state_after(data: bytes, seed: int, length: int) -> State:
    start = 0x9E3779B9 + length + 3923095
    state = _mixed((start & _MASK, (start + seed) & _MASK, start & _MASK))
    for block in _BLOCK.iter_unpack(data):
        a, b, c = ((one + other) & _MASK for one, other in zip(state, block, strict=True))
        state = _mixed((a, b, c))
    return state


def _mixed(state: State) -> State:
    a, b, c = state
    for bits in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & _MASK) ^ _rotated(c, bits)
        a, b, c = b, (c + b) & _MASK, a
    return a, b, c


def _unmixed(state: State) -> State:
    a, b, c = state
    for bits in (4, 19, 16, 8, 6, 4):
        a, b, c = c, a, b
        c = (c - b) & _MASK
        a = ((a ^ _rotated(c, bits)) + c) & _MASK
    return a, b, c


def _unfinished(state: State) -> State:
    a, b, c = state
    for bits in (24, 14, 4, 16, 25, 11, 14):
        c = ((c + _rotated(b, bits)) & _MASK) ^ b
        a, b, c = c, a, b
    return b, c, a


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK

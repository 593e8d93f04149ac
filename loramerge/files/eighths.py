"""Conversion between float8 and float32 by tables, several times as fast as number by number.

A float32 is cut to its upper 16 bits, of which the last says whether anything was cut: rounding to odd.
These are more than two bits beyond those of a float8, so that rounding them once more, to nearest and
ties to even, gives what rounding the float32 gives. The table has one entry for each of the 65,536.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["codes_of", "is_eighth", "round_eighths", "widen_eighths"]

_NAMES = frozenset({"float8_e4m3fn", "float8_e5m2"})
_LOWER, _LAST = 0xFFFF, 0x10000
_PIECE = 1 << 16  # numbers converted at once


def is_eighth(kind: Any) -> bool:
    """Return whether a type is one of the two float8 that weights are stored in."""
    return kind.name in _NAMES


def widen_eighths(raw: Array, out: Array) -> None:
    """Fill a float32 array with float8 numbers, both contiguous and of one shape."""
    import numpy as np

    np.take(_values(raw.dtype), raw.view(np.uint8), out=out, mode="clip")


def round_eighths(exact: Array, out: Array, back: Array) -> None:
    """Round float32 numbers to float8, to nearest and ties to even, and give the same as float32.

    Args:
        exact, out, back: contiguous and of one shape.
    """
    import numpy as np

    values, floats = _values(out.dtype), back.reshape(-1)
    _round(exact, out.view(np.uint8), _codes(out.dtype))
    np.take(values, out.reshape(-1).view(np.uint8), out=floats, mode="clip")


def codes_of(exact: Array, kind: Any) -> Array:
    """Return float32 numbers rounded to a type of at most 8 bits, as bytes of one number each."""
    import numpy as np

    out = np.empty(exact.shape, np.uint8)
    _round(np.ascontiguousarray(exact), out, _codes(np.dtype(kind)))
    return out


def _round(exact: Array, out: Array, codes: Array) -> None:
    """Fill an array with the bytes of numbers, by a table."""
    import numpy as np

    flat, stored = exact.reshape(-1).view(np.uint32), out.reshape(-1)
    scratch = np.empty(min(_PIECE, flat.size), np.uint32)
    short = np.empty(len(scratch), np.uint16)
    for start in range(0, flat.size, _PIECE):
        bits = flat[start : start + _PIECE]
        upper, index = scratch[: len(bits)], short[: len(bits)]
        np.bitwise_and(bits, np.uint32(_LOWER), out=upper)
        np.add(upper, np.uint32(_LOWER), out=upper)
        np.bitwise_and(upper, np.uint32(_LAST), out=upper)
        np.bitwise_or(upper, bits, out=upper)
        np.right_shift(upper, np.uint32(16), out=upper)
        np.copyto(index, upper, casting="unsafe")
        np.take(codes, index, out=stored[start : start + len(bits)], mode="clip")


@cache
def _values(kind: Any) -> Array:
    """Return the numbers of all bytes."""
    import numpy as np

    found: Array = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    return found


@cache
def _codes(kind: Any) -> Array:
    """Return the bytes of all numbers of 16 bits."""
    import numpy as np

    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = upper.view(np.float32).astype(kind).view(np.uint8)
    return found

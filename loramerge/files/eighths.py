"""Conversion between float8 and float32, several times as fast as number by number.

The bits of a float8 are shifted to their places in a float32, which is then multiplied by a power of
two; where many are subnormal, which some processors are slow with, or one is NaN or infinity, they are
looked up in a table. A float32 is rounded by adding a number so large that the sum has no more bits than
the float8, and taking it away again; what was added holds the exponent of the float8, and the sum its
mantissa. Numbers that are larger than a float8 are cut to their upper 16 bits, of which the last says
whether anything was cut: rounding to odd. These are more than two bits beyond those of a float8, so that
rounding them once more, to nearest and ties to even, gives what rounding the float32 gives. The table
has one entry for each of the 65,536.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["codes_of", "is_eighth", "round_eighths", "widen_eighths", "with_subnormals"]

# bits of the mantissa, bias of the exponent, the largest number, and the byte after that
_LAYOUTS = {"float8_e4m3fn": (3, 7, 448.0, 0x7F), "float8_e5m2": (2, 15, 57344.0, 0x7C)}
_EXPONENT = 0x7F800000  # bits of a float32
_SUBNORMAL = 2.0**-140  # of float32
_MANY = 1 / 8  # share of subnormal numbers
_LOWER, _LAST = 0xFFFF, 0x10000
_PIECE = 1 << 17  # numbers converted at once


def is_eighth(kind: Any) -> bool:
    """Return whether a type is one of the two float8 that weights are stored in."""
    return kind.name in _LAYOUTS


def widen_eighths(raw: Array, out: Array) -> None:
    """Fill a float32 array with float8 numbers, both contiguous and of one shape."""
    import numpy as np

    codes, floats = raw.reshape(-1).view(np.uint8), out.reshape(-1)
    mantissa, bias, _, beyond = _LAYOUTS[raw.dtype.name]
    sizes = codes & np.uint8(0x7F)
    usual = with_subnormals() and sizes.max(initial=0) < beyond
    if not usual or np.count_nonzero(sizes >> mantissa) < (1 - _MANY) * codes.size:
        np.take(_values(raw.dtype), codes, out=floats, mode="clip")
        return
    bits = floats.view(np.int32)
    np.copyto(bits, codes.view(np.int8))
    np.left_shift(bits, 23 - mantissa, out=bits)
    np.bitwise_and(bits, np.int32((0x7F << (23 - mantissa)) - (1 << 31)), out=bits)
    np.multiply(floats, np.float32(2.0 ** (127 - bias)), out=floats)


def round_eighths(exact: Array, out: Array, back: Array) -> None:
    """Round float32 numbers to float8, to nearest and ties to even, and give the same as float32.

    Args:
        exact, out, back: contiguous and of one shape. Zeros of `back` may have lost their sign.
    """
    import numpy as np

    flat, floats, codes = exact.reshape(-1), back.reshape(-1), out.reshape(-1).view(np.uint8)
    piece = min(_PIECE, flat.size)
    scratch = np.empty((4, piece), np.int32)
    mantissa, bias, most, _ = _LAYOUTS[out.dtype.name]
    scratch[0] = (128 - bias) << 23  # the power of the smallest normal number
    for start in range(0, flat.size, _PIECE):
        part = slice(start, start + piece)
        with np.errstate(over="ignore", invalid="ignore"):
            fits = _fill_back(flat[part], floats[part], scratch, mantissa, most)
        if fits:
            _fill_codes(flat[part], codes[part], scratch, mantissa, bias)
        else:
            _round(flat[part], codes[part], _codes(out.dtype))
            widen_eighths(out.reshape(-1)[part], floats[part])


def _fill_back(exact: Array, back: Array, scratch: Array, mantissa: int, most: float) -> bool:
    """Round numbers to floats; return whether all of them fit.

    Args:
        scratch: `(4, numbers)` of int32, the first filled with the least power.
        mantissa, most: see `_LAYOUTS`.
    """
    import numpy as np

    least, power, large, total = (one[: len(exact)] for one in scratch)
    np.bitwise_and(exact.view(np.int32), np.int32(_EXPONENT), out=power)
    np.maximum(power, least, out=power)
    np.add(power, np.int32(((23 - mantissa) << 23) + (1 << 22)), out=large)  # times 1.5 · 2^…
    added, summed = large.view(np.float32), total.view(np.float32)
    np.add(exact, added, out=summed)
    np.subtract(summed, added, out=back)
    return bool(back.max() <= most and back.min() >= -most)


def _fill_codes(exact: Array, codes: Array, scratch: Array, mantissa: int, bias: int) -> None:
    """Fill an array with the bytes of numbers that `_fill_back` has rounded."""
    import numpy as np

    _, power, large, total = (one[: len(exact)] for one in scratch)
    part = large.view(np.uint8)[: len(exact)]
    np.copyto(codes, total, casting="unsafe")  # the number in units of its last place
    np.abs(codes.view(np.int8), out=codes.view(np.int8))
    np.right_shift(power, 23 - mantissa, out=power)
    np.copyto(part, power, casting="unsafe")
    np.add(codes, part, out=codes)
    np.subtract(codes, np.uint8((128 - bias << mantissa) & 0xFF), out=codes)
    np.right_shift(exact.view(np.int32), 24, out=power)
    np.copyto(part, power, casting="unsafe")
    np.bitwise_and(part, np.uint8(0x80), out=part)
    np.bitwise_or(codes, part, out=codes)


def codes_of(exact: Array, kind: Any) -> Array:
    """Return float32 numbers rounded to a type of at most 8 bits, as bytes of one number each."""
    import numpy as np

    out = np.empty(exact.shape, np.uint8)
    _round(np.ascontiguousarray(exact), out, _codes(np.dtype(kind)))
    return out


def _round(exact: Array, out: Array, codes: Array) -> None:
    """Fill an array with the bytes of any numbers, by a table."""
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


def with_subnormals() -> bool:
    """Return whether this thread computes with subnormal numbers, which some libraries turn off."""
    import numpy as np

    return bool((np.full(1, _SUBNORMAL, np.float32) * np.float32(2.0**20))[0])

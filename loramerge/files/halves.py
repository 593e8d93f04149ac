"""Conversion between float16 and float32, several times as fast as numpy's own.

numpy converts float16 one number at a time unless it was built for a processor that does so. Here whole
blocks are shifted and rounded: the same bits, proven for every float16 and at every border between two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loramerge.files.eighths import is_eighth, round_eighths, widen_eighths
from loramerge.files.eighths import with_subnormals as _exact

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["round_floats", "widen"]

_SHIFT = 13  # bits of a float32's mantissa beyond a float16's
_BIAS = 112  # difference of their exponents' biases
_FACTOR = 2.0**15  # times 2¹¹², a float32 holds no more
_INFINITY, _NEGATIVE = 0x7C00, 0x8000  # bits of a float16
_EXPONENT, _SIGN = 0x7F800000, -0x80000000  # bits of a float32
_LARGE = 0x47000000  # bits of 2¹⁵; larger numbers may not fit
_LEAST = 0x38800000  # bits of 2⁻¹⁴, the smallest normal float16
_PIECE = 1 << 16  # numbers converted at once


def widen(raw: Array, out: Array, factor: float = 1.0) -> bool:
    """Fill an array with floats of another type, both contiguous and of one shape, times a factor.

    The product is rounded once, as that of the floats is.

    Returns:
        Whether all of them are known to be finite.
    """
    import numpy as np

    bits_alone = raw.dtype == np.float16 and out.dtype == np.float32 and abs(factor) < _FACTOR
    if bits_alone and _exact() and _finite(raw):
        halves, bits = raw.view(np.int16), out.view(np.int32)
        np.copyto(bits, halves)
        np.left_shift(bits, _SHIFT, out=bits)
        np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # the sign, and what was shifted
        np.multiply(out, np.float32(factor) * np.float32(2.0**_BIAS), out=out)
        return True
    if is_eighth(raw.dtype) and out.dtype == np.float32:
        widen_eighths(raw, out)
    else:
        np.copyto(out, raw, casting="unsafe")
    if factor != 1.0:
        np.multiply(out, factor, out=out)
    return False


def _finite(raw: Array) -> bool:
    """Return whether float16 are all finite, by the largest of either sign."""
    import numpy as np

    positive = raw.view(np.int16).max(initial=0) < _INFINITY
    return bool(positive and raw.view(np.uint16).max(initial=0) < _INFINITY + _NEGATIVE)


def round_floats(exact: Array, out: Array, back: Array) -> None:
    """Round floats to another type, to nearest and ties to even, and give the same numbers as floats.

    Args:
        exact, out, back: contiguous and of one shape; `back` has the type of `exact` and is another
            array. Its zeros may have lost their sign.
    """
    import numpy as np

    if exact.dtype == np.float32 and is_eighth(out.dtype):
        round_eighths(exact, out, back)
        return
    if exact.dtype != np.float32 or out.dtype != np.float16 or not _exact():
        _by_numpy(exact, out, back)
        return
    flat, halves, floats = (one.reshape(-1) for one in (exact, out, back))
    scratch = np.empty((3, min(_PIECE, flat.size)), np.float32)
    scratch[2].view(np.int32)[:] = _LEAST
    for start in range(0, flat.size, _PIECE):
        part = slice(start, start + _PIECE)
        _round(flat[part], halves[part], floats[part], scratch)


def _by_numpy(exact: Array, out: Array, back: Array) -> None:
    import numpy as np

    np.copyto(out, exact, casting="unsafe")
    np.copyto(back, out, casting="unsafe")


def _round(exact: Array, out: Array, back: Array, scratch: Array) -> None:
    """Round so few numbers that all that is computed stays in the processor's cache."""
    import numpy as np

    first, second, least = (one[: len(exact)] for one in scratch)
    power = back.view(np.int32)
    np.bitwise_and(exact.view(np.int32), np.int32(_EXPONENT), out=power)
    if power.max() >= _LARGE:
        _by_numpy(exact, out, back)
        return
    # adding so large a number and taking it away again leaves eleven bits of the sum
    np.maximum(power, least.view(np.int32), out=power)  # arrays are compared faster than numbers
    np.multiply(back, np.float32(1.5 * 2.0**_SHIFT), out=first)
    np.add(exact, first, out=back)
    np.subtract(back, first, out=back)
    np.multiply(back, np.float32(2.0**-_BIAS), out=second)
    signs, bits = first.view(np.uint32), second.view(np.uint32)
    np.bitwise_and(exact.view(np.int32), np.int32(_SIGN), out=first.view(np.int32))
    np.right_shift(signs, np.uint32(16), out=signs)
    np.right_shift(bits, np.uint32(_SHIFT), out=bits)
    np.bitwise_or(bits, signs, out=bits)
    np.copyto(out.view(np.uint16), bits, casting="unsafe")

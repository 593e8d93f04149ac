"""Arrays for all block types of ggml: codes of a few bits in bytes, and extremes of short groups.

numpy is fast along long axes and on few numbers of many bytes, so that everything here works on many
blocks, and on several bytes, at a time.
"""

from __future__ import annotations

from typing import Any

from loramerge.checkpoint.storage import Array

__all__ = [
    "apart", "extreme_of", "high_bits", "joined", "largest_magnitudes", "largest_of", "smallest_of",
]  # fmt: skip

_MAGNITUDE = 0x7FFFFFFF  # bits of a float32


def apart(packed: Array, bits: int, width: int) -> Array:
    """Return codes of 2 or 4 bits, `(blocks, codes)`, in bytes of their own.

    Of each `width` bytes, a multiple of 4, the codes in the lowest bits come first.
    """
    import numpy as np

    word, size = _word(width)
    words = np.ascontiguousarray(packed).view(word).reshape(len(packed), -1, width // size)
    found = np.empty((*words.shape[:2], 8 // bits, width // size), word)
    for number in range(8 // bits):
        np.right_shift(words, word.type(bits * number), out=found[:, :, number])
    found &= word.type(int.from_bytes(bytes([(1 << bits) - 1]) * size, "little"))
    return found.view(np.uint8).reshape(len(packed), -1)


def joined(codes: Array, bits: int, width: int) -> Array:
    """Return codes packed: the inverse of `apart`."""
    import numpy as np

    word, size = _word(width)
    words = np.ascontiguousarray(codes).view(word)
    parts = words.reshape(len(codes), -1, 8 // bits, width // size)
    found = parts[:, :, 0].copy()
    for number in range(1, 8 // bits):
        found |= parts[:, :, number] << word.type(bits * number)
    packed: Array = found.view(np.uint8).reshape(len(codes), -1)
    return packed


def _word(width: int) -> tuple[Any, int]:
    """Return the widest type of so many bytes or a part of them, and its bytes.

    Codes have bytes of their own, so that no bit gets from one into its neighbour.
    """
    import numpy as np

    word = np.dtype(np.uint64 if width % 8 == 0 else np.uint32)
    return word, word.itemsize


def high_bits(packed: Array) -> Array:
    """Return the bits of bytes, the lowest first, as `(blocks, 8 · bytes)`."""
    import numpy as np

    return np.unpackbits(packed, axis=-1, bitorder="little")


def largest_of(groups: Array) -> Array:
    """Return the largest number of each group, `(…, numbers)` → `(…)`.

    Args:
        groups: contiguous, of a power of two numbers each, 8 or more.
    """
    import numpy as np

    return _across(groups, np.maximum)


def smallest_of(groups: Array) -> Array:
    """Return the smallest number of each group; see `largest_of`."""
    import numpy as np

    return _across(groups, np.minimum)


def _across(groups: Array, compare: Any) -> Array:
    """Return the extremes of groups.

    Groups are short, and numpy is fast along long axes: everything is compared with what is half a group
    behind it, then a quarter, although most of that is of no use.
    """
    import numpy as np

    width, flat = groups.shape[-1], groups.reshape(-1)
    step = width // 2
    while step >= 4:
        flat = compare(flat[:-step], flat[step:])
        step //= 2
    found: Array = compare(flat[::width], flat[1::width])
    for number in (2, 3):
        compare(found, flat[number::width], out=found)
    zero = np.flatnonzero(found == 0)  # of which numpy takes the sign of one of them
    found[zero] = compare.reduce(groups.reshape(-1, width)[zero], axis=1)
    return found.reshape(groups.shape[:-1])


def largest_magnitudes(groups: Array) -> Array:
    """Return the largest magnitude of each group of float32, `(groups, numbers)` → `(groups,)`.

    Args:
        groups: contiguous, of a power of two numbers each.
    """
    import numpy as np

    # magnitudes are in the order of their bits, and whole numbers are compared faster
    found = np.bitwise_and(groups.view(np.int32), np.int32(_MAGNITUDE)).reshape(-1)
    while found.size > len(groups):
        found = np.maximum(found[::2], found[1::2])
    return found.view(np.float32)


def extreme_of(values: Array) -> Array:
    """Return of each group the number of the largest magnitude, the first of several."""
    import numpy as np

    top, low = largest_of(values), smallest_of(values)
    found = np.where(top > -low, top, low)
    unsure = np.flatnonzero(np.abs(top) == np.abs(low))
    some = values[unsure]
    found[unsure] = some[np.arange(len(some)), np.abs(some).argmax(axis=1)]
    return found

"""The block types of ggml in 4, 5 and 8 bits with one scale for each block of 32 weights.

Source: `quants.py` of the gguf package, which defines both directions; results agree bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from loramerge.checkpoint.ggml_arrays import (
    apart,
    extreme_of,
    high_bits,
    joined,
    largest_magnitudes,
    largest_of,
    smallest_of,
)
from loramerge.checkpoint.storage import Array
from loramerge.files.dtypes import DTYPES
from loramerge.files.halves import round_floats, widen

__all__ = ["BLOCK_TYPES", "BlockType", "Grid"]

_SIGN = -0x80000000  # bits of a float32
# added to a number, and the fraction cut off, it rounds to nearest, and halves away from zero: those
# numbers that are just below a half stay below the next whole number
_BELOW_HALF = 0.5 - 2.0**-25


class Grid:
    """The numbers that the blocks of a type can hold: `weight = step · code + offset`.

    Args:
        codes: `(blocks, groups, weights of a group)`, as float32.
        step: `(blocks, groups, 1)`; offset: of the same shape, None for none.
    """

    __slots__ = ("codes", "offset", "step")

    def __init__(self, codes: Array, step: Array, offset: Array | None = None) -> None:
        self.codes, self.step, self.offset = codes, step, offset

    def values(self) -> Array:
        """Return the weights of the codes, `(blocks, weights)`."""
        found = self.step * self.codes
        if self.offset is not None:
            found += self.offset
        return found.reshape(len(found), -1)

    def steps(self) -> Array:
        """Return the distance between neighbouring numbers around each weight."""
        import numpy as np

        wide = np.broadcast_to(np.abs(self.step), self.codes.shape)
        return wide.reshape(len(wide), -1)


class BlockType(ABC):
    """A type of blocks.

    Args:
        name: as in `DTYPES`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.elements = DTYPES[name].elements
        self.size = DTYPES[name].bits // 8

    @abstractmethod
    def grid(self, blocks: Array) -> Grid:
        """Read blocks, `(blocks, bytes)`."""

    @abstractmethod
    def fresh(self, values: Array, draw: Any = None) -> Array:
        """Return the blocks of float32 weights, `(blocks, weights)`, by the rule of the format.

        Args:
            draw: function of a shape that returns numbers of [0, 1) to round stochastically; None
                rounds as the format does.
        """

    def values(self, blocks: Array) -> Array:
        """Return the float32 weights of blocks, `(blocks, weights)`."""
        return self.grid(blocks).values()

    def changed(self, blocks: Array, values: Array, draw: Any = None) -> Array:
        """Return the blocks of weights that stood in `blocks` before they changed."""
        return self.fresh(values, draw)

    def replaced(self, blocks: Array, values: Array, draw: Any = None) -> tuple[Array, Array]:
        """Return `changed`, and the weights that it holds, as `values` returns them."""
        found = self.changed(blocks, values, draw)
        return found, self.values(found)


def _halves(blocks: Array) -> Array:
    """Return the float32 values of float16 bytes, `(blocks, numbers)`."""
    import numpy as np

    return np.ascontiguousarray(blocks).view(np.float16).astype(np.float32)


def _bytes(halves: Array) -> Array:
    """Return float32 numbers as the bytes of float16, `(blocks, bytes)`."""
    import numpy as np

    with np.errstate(over="ignore"):  # what does not fit is found in the result
        return halves.astype(np.float16).view(np.uint8)


def _inverse(step: Array) -> Array:
    import numpy as np

    with np.errstate(divide="ignore"):
        return np.where(step == 0, np.float32(0), 1 / step).astype(np.float32)


class _Eight(BlockType):
    """Q8_0: 8-bit codes from -127 to 127."""

    def grid(self, blocks: Array) -> Grid:
        import numpy as np

        codes = blocks[:, 2:].view(np.int8).astype(np.float32)
        scales = np.ascontiguousarray(blocks).view(np.float16)[:, 0].copy()
        step = np.empty(len(scales), np.float32)
        widen(scales, step)
        return Grid(codes[:, None], step[:, None, None])

    def fresh(self, values: Array, draw: Any = None) -> Array:
        return self._made(values, draw)[0]

    def replaced(self, blocks: Array, values: Array, draw: Any = None) -> tuple[Array, Array]:
        found, held = self._made(values, draw)
        return found, self.values(found) if held is None else held

    def _made(self, values: Array, draw: Any) -> tuple[Array, Array | None]:
        """Return blocks, and the weights that they hold, unless some codes are not numbers."""
        import numpy as np

        step = largest_magnitudes(values) / np.float32(127)
        inverse = _inverse(step)
        codes = values * inverse[:, None]
        if draw is None:  # ggml rounds halves away from zero
            half = np.bitwise_and(codes.view(np.int32), np.int32(_SIGN))
            np.bitwise_or(half, np.float32(_BELOW_HALF).view(np.int32), out=half)
            np.add(codes, half.view(np.float32), out=codes)
            np.trunc(codes, out=codes)
        else:
            codes = np.clip(np.floor(codes + draw(codes.shape)), -127, 127)
        found, scales = (
            np.empty((len(values), self.size), np.uint8),
            np.empty(step.shape, np.float16),
        )
        with np.errstate(over="ignore"):  # what does not fit is found in the result
            round_floats(step, scales, held := np.empty_like(step))
        found.view(np.float16)[:, 0] = scales
        np.copyto(found[:, 2:].view(np.int8), codes, casting="unsafe")
        if not np.isfinite(inverse).all():
            return found, None
        return found, np.multiply(codes, held[:, None], out=codes)


class _Few(BlockType):
    """Q4_0, Q4_1, Q5_0 and Q5_1: codes of 4 or 5 bits, around zero or above a minimum.

    Args:
        bits: of a code.
        minimum: whether blocks have a minimum.
    """

    def __init__(self, name: str, bits: int, minimum: bool) -> None:
        super().__init__(name)
        self._levels, self._minimum = 1 << bits, minimum
        self._head = 4 if minimum else 2

    def grid(self, blocks: Array) -> Grid:
        import numpy as np

        codes = apart(blocks[:, -16:], 4, 16)
        if self._levels == 32:
            codes |= high_bits(blocks[:, self._head : self._head + 4]) << np.uint8(4)
        return self._grid(blocks[:, : self._head], codes)

    def _grid(self, head: Array, codes: Array) -> Grid:
        """Return the numbers of blocks.

        Args:
            head: bytes of their scales.
            codes: `(blocks, 32)`.
        """
        import numpy as np

        scales, found = _halves(head), codes.astype(np.float32)
        if not self._minimum:
            found -= self._levels // 2
        offset = scales[:, 1:, None] if self._minimum else None
        return Grid(found[:, None], scales[:, :1, None], offset)

    def fresh(self, values: Array, draw: Any = None) -> Array:
        return self._packed(*self._made(values, draw))

    def replaced(self, blocks: Array, values: Array, draw: Any = None) -> tuple[Array, Array]:
        head, codes = self._made(values, draw)
        return self._packed(head, codes), self._grid(head, codes).values()

    def _made(self, values: Array, draw: Any) -> tuple[Array, Array]:
        """Return the bytes of scales, and the codes of weights; see `_grid`."""
        import numpy as np

        half, top = np.float32(0.5), self._levels - 1
        if self._minimum:
            low = smallest_of(values)[:, None]
            step = (largest_of(values)[:, None] - low) / np.float32(top)
            head = np.concatenate((_bytes(step), _bytes(low)), axis=1)
            exact, shift = values - low, half
            exact *= _inverse(step)
        else:
            step = extreme_of(values)[:, None] / np.float32(-self._levels // 2)
            head = _bytes(step)
            exact, shift = values * _inverse(step), np.float32(self._levels // 2) + half
        if draw is None:
            exact += shift
            np.trunc(exact, out=exact)
        else:
            exact = np.floor(exact + (shift - half) + draw(exact.shape))
        return head, np.clip(exact, 0, top, out=exact).astype(np.uint8)

    def _packed(self, head: Array, codes: Array) -> Array:
        """Return the blocks of scales and codes."""
        import numpy as np

        parts = [head, joined(codes & np.uint8(15), 4, 16)]
        if self._levels == 32:
            parts.insert(1, np.packbits(codes >> np.uint8(4), axis=1, bitorder="little"))
        return np.concatenate(parts, axis=1)


BLOCK_TYPES: dict[str, BlockType] = {
    one.name: one
    for one in (
        _Eight("Q8_0"),
        _Few("Q4_0", 4, False),
        _Few("Q4_1", 4, True),
        _Few("Q5_0", 5, False),
        _Few("Q5_1", 5, True),
    )
}

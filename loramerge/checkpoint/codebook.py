"""Weights of bitsandbytes in 4 bits: `weight = table[code] · scale`, a scale for each block of numbers.

Blocks run over the ends of rows. The scales may be quantised, too (double quantisation): a code of a
second table times the scale of its block of scales, plus an offset.

Source: bitsandbytes, `functional.quantize_4bit` and `QuantState`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loramerge.checkpoint.storage import Array
from loramerge.files.tensors import StoredTensor

__all__ = ["CodebookRows", "Scales"]


@dataclass
class Scales:
    """The scales of blocks.

    Args:
        name: of their tensor; stored: as it holds them.
        table: of their codes, None for scales that are stored as numbers.
        outer: scales of their blocks; block: their number in one; offset: added to all.
    """

    name: str
    stored: Array
    table: Array | None = None
    outer: Array | None = None
    block: int = 1
    offset: float = 0.0

    def values(self, stored: Array, blocks: Array) -> Array:
        """Return stored scales of some blocks as float32."""
        import numpy as np

        if self.table is None or self.outer is None:
            return stored.astype(np.float32)
        found: Array = self.table[stored] * self.outer[blocks // self.block]
        return found + np.float32(self.offset)

    def nearest(self, wanted: Array, blocks: Array) -> Array:
        """Return the stored scales of some blocks that are nearest to numbers."""
        import numpy as np

        if self.table is None or self.outer is None:
            return wanted.astype(self.stored.dtype)
        outer = self.outer[blocks // self.block]
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.where(outer == 0, np.float32(0), (wanted - np.float32(self.offset)) / outer)
        return nearest(exact, self.table).astype(self.stored.dtype)


def nearest(values: Array, table: Array) -> Array:
    """Return the index of the number of a table that is nearest to each value."""
    import numpy as np

    order = np.argsort(table, kind="stable")
    known = table[order]
    found: Array = order[np.searchsorted((known[1:] + known[:-1]) / 2, values)]
    return found


class CodebookRows:
    """The rows of a weight of codes of 4 bits, two in a byte, the first in the upper half.

    Args:
        tensor: as it is stored; its shape is that of the weight.
        table: the 16 numbers; block: numbers with one scale.
        scales: gives the scales, when they are first needed.
    """

    def __init__(
        self, tensor: StoredTensor, table: Array, block: int, scales: Callable[[], Scales]
    ) -> None:
        self._tensor, self._table, self._block, self._given = tensor, table, block, scales
        self._columns = math.prod(tensor.shape[1:])
        self.unit = block // math.gcd(self._columns, block)

    @cached_property
    def _scales(self) -> Scales:
        return self._given()

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row of whole blocks begins."""
        return start * self._columns // 2

    def raw(self, start: int, stop: int) -> Array:
        """Return the bytes of rows that begin with a block."""
        import numpy as np

        found = np.empty((stop - start) * self._columns // 2, np.uint8)
        self._tensor.source.read_into(self._tensor.info.start + self.place(start), found)
        return found

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of rows, with the scales that they have now."""
        codes = self._codes(raw)
        blocks = self._blocks(start, len(codes))
        scales = self._scales.values(self._scales.stored[blocks], blocks)[:, None]
        found: Array = (self._table[codes] * scales).reshape(-1, self._columns)
        return found

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return rows after a change; the scales are kept for `beside`.

        Each changed block keeps its scale, or gets that of its largest number, whichever is nearer.
        """
        import numpy as np

        moved = np.flatnonzero(change.reshape(-1, self._block).any(axis=1))
        if not len(moved):
            return raw
        codes = self._codes(raw)
        new = (weights + change).astype(np.float32, copy=False).reshape(-1, self._block)[moved]
        blocks = self._blocks(start, len(codes))[moved]
        kept = self._scales.stored[blocks]
        fresh = self._scales.nearest(np.abs(new).max(axis=1), blocks)
        near, error = self._coded(new, self._scales.values(kept, blocks), draw)
        others, other = self._coded(new, self._scales.values(fresh, blocks), draw)
        better = other < error
        codes[moved] = np.where(better[:, None], others, near)
        self._scales.stored[blocks] = np.where(better, fresh, kept)
        flat = codes.reshape(-1)
        found: Array = (flat[::2] << np.uint8(4)) | flat[1::2]
        return found

    def _coded(self, values: Array, scales: Array, draw: Any) -> tuple[Array, Array]:
        """Return the codes of blocks of weights at some scales, and their squared errors.

        Errors of random rounding are those of what lies outside the table, so that they choose nothing.
        """
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.where(scales[:, None] == 0, np.float32(0), values / scales[:, None])
        if draw is None:
            codes = nearest(exact, self._table)
            inside = self._table[codes]
        else:
            inside = np.clip(exact, self._table.min(), self._table.max())
            order = np.argsort(self._table, kind="stable")
            known = self._table[order]
            above = np.clip(np.searchsorted(known, inside), 1, len(known) - 1)
            low, high = known[above - 1], known[above]
            codes = order[
                np.where(draw(exact.shape) < (inside - low) / (high - low), above, above - 1)
            ]
        error = ((inside * scales[:, None] - values) ** 2).sum(axis=1)
        return codes.astype(np.uint8), error

    def _codes(self, raw: Array) -> Array:
        import numpy as np

        found = np.stack((raw >> np.uint8(4), raw & np.uint8(15)), axis=-1)
        return found.reshape(-1, self._block)

    def _blocks(self, start: int, count: int) -> Array:
        """Return the numbers of the blocks from a row on."""
        import numpy as np

        return np.arange(count) + start * self._columns // self._block

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales."""
        return {self._scales.name: self._scales.stored.tobytes()}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self._of(self.unpack, start, stop)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        return self._of(self._spacing, start, stop)

    def _spacing(self, raw: Array, start: int) -> Array:
        import numpy as np

        order = np.argsort(self._table, kind="stable")
        gaps = np.empty(len(order), np.float32)
        gaps[order] = np.gradient(self._table[order])
        codes = self._codes(raw)
        blocks = self._blocks(start, len(codes))
        scales = self._scales.values(self._scales.stored[blocks], blocks)[:, None]
        return (gaps[codes] * np.abs(scales)).reshape(-1, self._columns)

    def _of(self, read: Any, start: int, stop: int) -> Array:
        first = start - start % self.unit
        last = min(stop + -stop % self.unit, self._tensor.shape[0])
        found: Array = read(self.raw(first, last), first)[start - first : stop - first]
        return found

"""Weights that are packed in blocks: several codes in few bytes, with scales among them or beside.

A packed weight is read and written in rows, like any other; see `Packing`. Rows of which no whole number
fills a block are read and written together with their neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loramerge.checkpoint.ggml import BlockType
from loramerge.checkpoint.storage import Array, Codec, Packing
from loramerge.files.tensors import StoredTensor

__all__ = ["BlockRows", "PackedTensor", "ReadByPacking"]


class ReadByPacking:
    """A tensor whose numbers only its packing reads and writes."""

    def dequantise(self, rows: Array, start: int) -> Array:
        """Refuse: there are no stored numbers of single weights."""
        raise TypeError("packed weights are read by their packing")

    def codec(self, dtype: str) -> Codec:
        """Refuse: there are no stored numbers of single weights."""
        raise TypeError("packed weights are written by their packing")


@dataclass(frozen=True)
class PackedTensor(ReadByPacking):
    """A packed weight.

    Args:
        packing: its rows.
        beside: names of the tensors that are written together with it; nbytes: their bytes.
        marks: names of further tensors that describe it.
    """

    packing: Packing
    beside: tuple[str, ...] = ()
    nbytes: int = 0
    marks: tuple[str, ...] = ()


class BlockRows:
    """The rows of a weight whose blocks follow each other, each with its scales inside.

    Args:
        tensor: as it is stored, of the shape of the weight.
    """

    def __init__(self, tensor: StoredTensor, kind: BlockType) -> None:
        self._tensor, self._kind = tensor, kind
        self._columns = math.prod(tensor.shape[1:])
        self.unit = kind.elements // math.gcd(self._columns, kind.elements)

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row of whole blocks begins."""
        return start * self._columns // self._kind.elements * self._kind.size

    def raw(self, start: int, stop: int) -> Array:
        """Return the blocks of rows, `(blocks, bytes)`; `start` is a multiple of `unit`, `stop` too
        unless it is the end."""
        import numpy as np

        count = (stop - start) * self._columns // self._kind.elements
        found = np.empty((count, self._kind.size), np.uint8)
        offset = self._tensor.info.start + self.place(start)
        self._tensor.source.read_into(offset, found.reshape(-1))
        return found

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of blocks that begin at a row, `(rows, columns)`."""
        return self._kind.values(raw).reshape(-1, self._columns)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return the blocks of rows after a change; blocks without one keep their bytes.

        Args:
            raw, weights: before, see `raw` and `unpack`.
            draw: see `BlockType.fresh`.
        """
        moved, new = self._moved(raw, weights, change)
        if moved is None:
            return self._kind.changed(raw, new, draw)
        found = raw.copy() if len(moved) else raw
        if len(moved):
            found[moved] = self._kind.changed(raw[moved], new, draw)
        return found

    def repack(
        self, raw: Array, weights: Array, change: Array, start: int, draw: Any
    ) -> tuple[Array, Array]:
        """Return the same as `pack`, and the weights that it holds, as `unpack` returns them."""
        moved, new = self._moved(raw, weights, change)
        if moved is None:
            found, held = self._kind.replaced(raw, new, draw)
            return found, held.reshape(weights.shape)
        if not len(moved):
            return raw, weights
        found, held = raw.copy(), weights.reshape(-1, self._kind.elements).copy()
        found[moved], held[moved] = self._kind.replaced(raw[moved], new, draw)
        return found, held.reshape(weights.shape)

    def _moved(self, raw: Array, weights: Array, change: Array) -> tuple[Array | None, Array]:
        """Return the numbers of the blocks that change, None for all, and their new weights."""
        import numpy as np

        blocks = change.reshape(-1, self._kind.elements)
        every = bool(blocks[:, 0].all())  # mostly true, and soon known
        moved = None if every else np.flatnonzero(blocks.any(axis=1))
        if moved is not None and len(moved) == len(raw):
            moved = None
        old = weights.reshape(blocks.shape)
        new = old + blocks if moved is None else old[moved] + blocks[moved]
        return moved, new.astype(np.float32, copy=False)

    def beside(self) -> Mapping[str, bytes]:
        """Return nothing: all scales are in the blocks."""
        return {}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows, `(rows, columns)`."""
        return self._of(self._kind.values, start, stop)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        return self._of(lambda raw: self._kind.grid(raw).steps(), start, stop)

    def _of(self, read: Callable[[Array], Array], start: int, stop: int) -> Array:
        first = start - start % self.unit
        last = min(stop + -stop % self.unit, self._tensor.shape[0])
        found = read(self.raw(first, last)).reshape(-1, self._columns)
        return found[start - first : stop - first]

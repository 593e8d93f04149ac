"""Float8 weights with a scale for each block of rows and columns: `weight = stored · scale`.

Source: transformers, `FineGrainedFP8Config`; DeepSeek-V3, `weight_dequant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from loramerge.checkpoint.micro import neighbours
from loramerge.checkpoint.storage import Array
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["BLOCK", "FloatBlockRows", "has_blocks"]

BLOCK = 128  # rows and columns of a block


def has_blocks(scale: Tensor, weight: Tensor) -> bool:
    """Return whether a tensor has one number for each block of a weight."""
    return len(weight.shape) == 2 and scale.shape == tuple(-(-n // BLOCK) for n in weight.shape)


class FloatBlockRows:
    """The rows of a weight with scales of blocks.

    Args:
        name, scales: of the tensor of scales.
    """

    unit = BLOCK

    def __init__(self, tensor: StoredTensor, name: str, scales: Tensor) -> None:
        self._tensor, self._name, self._given = tensor, name, scales
        self._columns, self._kind = tensor.shape[1], numpy_dtype(tensor.dtype)

    @cached_property
    def _stored(self) -> Array:
        """The scales as they are now."""
        return self._given.numpy().copy()

    @property
    def _most(self) -> float:
        import ml_dtypes

        return float(ml_dtypes.finfo(self._kind).max)

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row begins."""
        return start * self._columns

    def raw(self, start: int, stop: int) -> Array:
        """Return rows as they are stored."""
        import numpy as np

        found = np.empty((stop - start, self._columns), np.uint8)
        self._tensor.source.read_into(
            self._tensor.info.start + self.place(start), found.reshape(-1)
        )
        return found.view(self._kind)

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of stored rows, with the scales that they have now."""
        import numpy as np

        return raw.astype(np.float32) * self._spread(start, len(raw))

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return rows after a change; the scales are kept for `beside`.

        A changed block keeps its scale unless numbers would be too large; then it gets that of its
        largest number.
        """
        import numpy as np

        found = raw.copy()
        for top in range(0, len(raw), BLOCK):
            for left in range(0, self._columns, BLOCK):
                part = slice(top, top + BLOCK), slice(left, left + BLOCK)
                if change[part].any():
                    new = (weights[part] + change[part]).astype(np.float32, copy=False)
                    where = (start + top) // BLOCK, left // BLOCK
                    found[part] = self._coded(new, where, draw)
        return found

    def _coded(self, values: Array, where: tuple[int, int], draw: Any) -> Array:
        """Return the stored numbers of a block, and keep its scale."""
        import numpy as np

        most, scale = np.float32(self._most), np.float32(self._stored[where])
        largest = np.abs(values).max()
        with np.errstate(over="ignore", invalid="ignore"):
            fits = np.isfinite((largest / scale).astype(self._kind)) if scale else largest == 0
        if not fits:
            self._stored[where] = 1 / (most / largest)
            scale = np.float32(self._stored[where])
        exact = values / scale if scale else np.zeros_like(values)
        return neighbours(np.clip(exact, -most, most), self._kind, draw)

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales."""
        return {self._name: self._stored.tobytes()}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        import ml_dtypes
        import numpy as np

        kind = ml_dtypes.finfo(self._kind)
        numbers = np.abs(self.raw(start, stop).astype(np.float32))
        power = np.floor(np.log2(np.maximum(numbers, np.float32(kind.smallest_normal))))
        spacing: Array = np.exp2(power - kind.nmant).astype(np.float32)
        return spacing * self._spread(start, stop - start)

    def _spread(self, start: int, count: int) -> Array:
        """Return the scale of every number of some rows."""
        import numpy as np

        rows = np.arange(start, start + count) // BLOCK
        columns = np.arange(self._columns) // BLOCK
        found: Array = self._stored[rows][:, columns].astype(np.float32)
        return found

"""Rows of whole numbers whose columns were rotated: `weight = rotated(stored · scale of the row)`.

Numbers have 8 bits, or 4 and lie in pairs, that of the even column in the lower half of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from loramerge.checkpoint.storage import Array
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["RotatedRows", "codes_of_pairs", "pairs_of_codes", "rotation"]


def rotation(size: int) -> Array:
    """Return the regular Hadamard matrix of a size that is a power of 4, orthogonal and symmetric."""
    import numpy as np

    four = np.ones((4, 4), np.float32) - 2 * np.eye(4, dtype=np.float32)[::-1]
    found = four
    while len(found) < size:
        found = np.kron(found, four)
    return found / np.float32(size**0.5)


def codes_of_pairs(raw: Array) -> Array:
    """Return codes 0 to 15 of bytes that hold two, that of the even column in the lower half."""
    import numpy as np

    both = raw.view(np.uint8)
    found = np.stack((both & np.uint8(15), both >> np.uint8(4)), axis=-1)
    return found.reshape(len(raw), -1)


def pairs_of_codes(codes: Array) -> Array:
    """Return bytes that hold two codes each: the inverse of `codes_of_pairs`."""
    import numpy as np

    found: Array = (codes[:, ::2] & np.uint8(15)) | (codes[:, 1::2] << np.uint8(4))
    return found


class RotatedRows:
    """The rows of a rotated weight.

    Args:
        tensor: as it is stored, of the shape of the weight.
        name, scale: of the tensor of scales, one for each row.
        group: columns that are rotated together.
        bits: of a number.
    """

    unit = 1

    def __init__(
        self, tensor: StoredTensor, name: str, scale: Tensor, group: int, bits: int = 8
    ) -> None:
        self._bits, self._most = bits, 2 ** (bits - 1) - 1
        self._tensor, self._name, self._kind = tensor, name, numpy_dtype(scale.dtype)
        self._columns, self._given, self._group = tensor.shape[1], scale, group

    @cached_property
    def _scale(self) -> Array:
        """The scales of the rows as they are now."""
        import numpy as np

        return np.array(self._given.numpy(), np.float32).reshape(-1, 1)

    @cached_property
    def _matrix(self) -> Array:
        return rotation(self._group)

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row begins."""
        return start * self._columns * self._bits // 8

    def raw(self, start: int, stop: int) -> Array:
        """Return rows as they are stored."""
        import numpy as np

        found = np.empty((stop - start, self._columns * self._bits // 8), np.int8)
        offset = self._tensor.info.start + self.place(start)
        self._tensor.source.read_into(offset, found.reshape(-1).view(np.uint8))
        return found

    def _numbers(self, raw: Array) -> Array:
        """Return stored rows as float32 numbers."""
        import numpy as np

        if self._bits == 8:
            return raw.astype(np.float32)
        codes = codes_of_pairs(raw).view(np.int8)
        return np.where(codes > 7, codes - np.int8(16), codes).astype(np.float32)

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of stored rows, with the scales that they have now."""
        return self.turned(self._numbers(raw) * self._scale[start : start + len(raw)])

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return rows after a change, which is added before the rotation back; a row gets a larger scale
        if it does not fit."""
        import numpy as np

        moved = change.any(axis=1)
        if not moved.any():
            return raw
        rows = np.flatnonzero(moved) + start
        exact = self._numbers(raw[moved]) * self._scale[rows] + self.turned(change[moved])
        largest = np.abs(exact).max(axis=1, keepdims=True)
        grown = (largest / np.float32(self._most)).astype(self._kind)
        low = grown.astype(np.float32) * np.float32(self._most + 0.5) < largest
        grown = np.where(low, np.nextafter(grown, self._kind.type(np.inf)), grown)
        fits = largest <= (self._most + 0.5) * self._scale[rows]
        self._scale[rows] = np.where(fits, self._scale[rows], grown.astype(np.float32))
        exact /= self._scale[rows]
        codes = np.rint(exact) if draw is None else np.floor(exact + draw(exact.shape))
        least = (
            -self._most if self._bits == 4 else -self._most - 1
        )  # as the format's quantiser has it
        codes = np.clip(codes, least, self._most).astype(np.int8)
        found = raw.copy()
        found[moved] = (
            codes if self._bits == 8 else pairs_of_codes(codes.view(np.uint8)).view(np.int8)
        )
        return found

    def turned(self, rows: Array) -> Array:
        """Return rows rotated, or rotated back."""
        import numpy as np

        groups = rows.reshape(len(rows), -1, len(self._matrix))
        found: Array = np.matmul(groups, self._matrix).reshape(rows.shape)
        return found

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales."""
        return {self._name: self._scale.astype(self._kind).tobytes()}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers of any rows, before the rotation back."""
        import numpy as np

        return np.broadcast_to(self._scale[start:stop], (stop - start, self._columns)).copy()

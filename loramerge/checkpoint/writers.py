"""Writers of whole weights in the quantised forms; see `storage.Writer`.

Source: comfy-kitchen's quantisers for the processor and `quants.py` of the gguf package; codes and
scales agree with theirs bit for bit, except those of ggml's K types, which that package cannot make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loramerge.checkpoint.ggml import BlockType
from loramerge.checkpoint.micro import Format, empty_tiles, neighbours, tiled
from loramerge.checkpoint.rotated import rotation
from loramerge.checkpoint.storage import Array

__all__ = ["BlockWriter", "GroupWriter", "RowWriter", "ScaledWriter"]

_WHOLE = 127  # the largest number of int8 that scales count with
_LEAST = 1e-30  # the smallest scale of a row


class BlockWriter:
    """Blocks that follow each other, each with its scales inside."""

    looks = False

    def __init__(self, kind: BlockType, shape: tuple[int, ...]) -> None:
        self._kind, self._columns = kind, math.prod(shape[1:])
        self.unit = kind.elements // math.gcd(self._columns, kind.elements)

    def look(self, weights: Array) -> None:
        """Do nothing: every block has its own scales."""

    def place(self, start: int) -> int:
        """Return the byte at which a row of whole blocks begins."""
        return start * self._columns // self._kind.elements * self._kind.size

    def store(self, weights: Array, start: int, draw: Any) -> tuple[Array, Array]:
        """Return the blocks of rows, and the weights that they hold."""
        blocks = self._kind.fresh(weights.reshape(-1, self._kind.elements), draw)
        return blocks, self._kind.values(blocks).reshape(weights.shape)

    def beside(self) -> Mapping[str, bytes]:
        """Return nothing: all scales are in the blocks."""
        return {}


class ScaledWriter:
    """Float8 numbers with one scale for the tensor: the largest weight becomes the largest number.

    Args:
        scale: name of the tensor with the scale.
        marks: bytes of tensors that describe the weight, by name.
    """

    unit, looks = 1, True

    def __init__(self, scale: str, columns: int, marks: Mapping[str, bytes]) -> None:
        self._name, self._columns, self._marks = scale, columns, marks
        self._most: Any = 0.0

    def look(self, weights: Array) -> None:
        """Note the largest weight."""
        import numpy as np

        self._most = max(self._most, np.float32(np.abs(weights).max(initial=0)))

    def place(self, start: int) -> int:
        """Return the byte at which a row begins."""
        return start * self._columns

    def _scale(self) -> Any:
        import numpy as np

        return np.float32(self._most) / np.float32(448) if self._most else np.float32(1)

    def store(self, weights: Array, start: int, draw: Any) -> tuple[Array, Array]:
        """Return the numbers of rows, and the weights that they hold."""
        import ml_dtypes
        import numpy as np

        exact = np.clip(weights * (np.float32(1) / self._scale()), -448, 448)
        codes = neighbours(exact, ml_dtypes.float8_e4m3fn, draw)
        return codes.view(np.uint8), codes.astype(np.float32) * self._scale()

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scale and of the marks."""
        return {self._name: self._scale().tobytes(), **self._marks}


class RowWriter:
    """Int8 numbers with a scale for each row, which may be rotated.

    Args:
        scale: name of the tensor with the scales.
        group: columns that are rotated together, 0 for none.
        marks: bytes of tensors that describe the weight, by name.
    """

    unit, looks = 1, False

    def __init__(
        self, scale: str, shape: tuple[int, ...], group: int, marks: Mapping[str, bytes]
    ) -> None:
        import numpy as np

        self._name, self._columns, self._marks = scale, math.prod(shape[1:]), marks
        self._scales = np.empty((shape[0], 1), np.float32)
        self._matrix = rotation(group) if group else None

    def look(self, weights: Array) -> None:
        """Do nothing: every row has its own scale."""

    def place(self, start: int) -> int:
        """Return the byte at which a row begins."""
        return start * self._columns

    def store(self, weights: Array, start: int, draw: Any) -> tuple[Array, Array]:
        """Return the numbers of rows, and the weights that they hold."""
        import numpy as np

        turned = self._turned(weights)
        largest = np.abs(turned).max(axis=1, keepdims=True)
        scale = np.maximum(largest / np.float32(_WHOLE), np.float32(_LEAST))
        self._scales[start : start + len(weights)] = scale
        exact = turned / scale
        codes = np.rint(exact) if draw is None else np.floor(exact + draw(exact.shape))
        codes = np.clip(codes, -_WHOLE - 1, _WHOLE)
        return codes.astype(np.int8).view(np.uint8), self._turned(codes * scale)

    def _turned(self, rows: Array) -> Array:
        import numpy as np

        if self._matrix is None:
            return rows
        groups = rows.reshape(len(rows), -1, len(self._matrix))
        found: Array = np.matmul(groups, self._matrix).reshape(rows.shape)
        return found

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales and of the marks."""
        return {self._name: self._scales.tobytes(), **self._marks}


class GroupWriter:
    """Micro-scaled numbers: a scale for each group of columns, and one for the tensor or none.

    Args:
        scales: name of the tensor with the scales of groups.
        whole: name of the tensor with the scale of the weight, `''` for a format without one.
        marks: bytes of tensors that describe the weight, by name.
    """

    unit = 1

    def __init__(
        self,
        kind: Format,
        shape: tuple[int, ...],
        scales: str,
        whole: str,
        marks: Mapping[str, bytes],
    ) -> None:
        import numpy as np

        self._kind, self._columns, self._names, self._marks = kind, shape[1], (scales, whole), marks
        self.looks = bool(whole)
        self._most: Any = 0.0
        self._stored = np.empty((shape[0], shape[1] // kind.group), np.uint8)

    def look(self, weights: Array) -> None:
        """Note the largest weight, where the tensor has a scale of its own."""
        import numpy as np

        self._most = max(self._most, np.float32(np.abs(weights).max(initial=0)))

    def place(self, start: int) -> int:
        """Return the byte at which a row begins."""
        return start * self._columns // self._kind.packed

    def _whole(self) -> Any:
        import numpy as np

        if not self._names[1] or not self._most:
            return np.float32(1)
        return np.float32(self._most) / np.float32(448 * self._kind.most)

    def store(self, weights: Array, start: int, draw: Any) -> tuple[Array, Array]:
        """Return the numbers of rows, and the weights that they hold."""
        import numpy as np

        groups = weights.reshape(len(weights), -1, self._kind.group)
        scales = self._kind.fitting(np.abs(groups).max(axis=2), self._whole())
        self._stored[start : start + len(weights)] = scales
        step = (self._whole() * self._kind.factors(scales))[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.where(step == 0, np.float32(0), groups / step)
        inside = np.clip(exact, -self._kind.most, self._kind.most)
        packed = self._kind.joined(self._kind.rounded(inside, draw).reshape(weights.shape))
        numbers = self._kind.numbers(packed).reshape(groups.shape)
        return packed, (numbers * step).reshape(weights.shape)

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales, those of groups in their tiles, and of the marks."""
        scales, whole = self._names
        found = {scales: tiled(self._stored, empty_tiles(self._stored)).tobytes(), **self._marks}
        return found | ({whole: self._whole().tobytes()} if whole else {})

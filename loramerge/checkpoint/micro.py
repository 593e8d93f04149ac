"""The micro-scaled formats of ComfyUI: small floats with a scale beside for each group of columns.

    weight = number · scale of its group · scale of the tensor

Scales are stored in the tiles of 128 rows and 4 groups that tensor cores read.

Source: comfy-kitchen, `quantize_mxfp8` and `quantize_nvfp4`; the OCP specification of MX formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from loramerge.checkpoint.storage import Array
from loramerge.files.eighths import codes_of
from loramerge.files.halves import widen
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = [
    "MX", "NV", "Format", "GroupRows", "empty_tiles", "neighbours", "tiled", "tiled_shape", "tiled_size",
    "untiled",
]  # fmt: skip

_ROWS, _GROUPS = 128, 4  # of a tile


def tiled_shape(rows: int, groups: int) -> tuple[int, int]:
    """Return the shape in which the scales of a matrix are stored, padding included."""
    return rows + -rows % _ROWS, groups + -groups % _GROUPS


def tiled_size(rows: int, groups: int) -> int:
    """Return the number of scales that are stored for a matrix, padding included."""
    return math.prod(tiled_shape(rows, groups))


def empty_tiles(scales: Array) -> Array:
    """Return the tiles of scales by row and group, all zero."""
    import numpy as np

    return np.zeros(tiled_size(*scales.shape), np.uint8)


def untiled(tiles: Array, rows: int, groups: int) -> Array:
    """Return scales by row and group."""
    high, wide = -(-rows // _ROWS), -(-groups // _GROUPS)
    blocks = tiles.reshape(high, wide, 32, 4, _GROUPS).transpose(0, 3, 2, 1, 4)
    return blocks.reshape(high * _ROWS, wide * _GROUPS)[:rows, :groups]


def tiled(scales: Array, tiles: Array) -> Array:
    """Return tiles with these scales; the padding keeps its bytes."""
    rows, groups = scales.shape
    high, wide = -(-rows // _ROWS), -(-groups // _GROUPS)
    whole = untiled(tiles, high * _ROWS, wide * _GROUPS).copy()
    whole[:rows, :groups] = scales
    blocks = whole.reshape(high, 4, 32, wide, _GROUPS).transpose(0, 3, 2, 1, 4)
    found: Array = blocks.reshape(tiles.shape)
    return found


@dataclass(frozen=True)
class Format:
    """A micro-scaled format.

    Args:
        group: columns of a group; packed: numbers in a byte.
        most: the largest number.
    """

    group: int
    packed: int
    most: float

    def numbers(self, raw: Array) -> Array:
        """Return stored bytes as float32 numbers, `(rows, columns)`."""
        raise NotImplementedError

    def rounded(self, exact: Array, draw: Any) -> Array:
        """Return numbers within the range as bytes of one number each."""
        raise NotImplementedError

    def factors(self, stored: Array) -> Array:
        """Return stored scales as float32."""
        raise NotImplementedError

    def fitting(self, largest: Array, whole: Any) -> Array:
        """Return the stored scales for groups of which these are the largest magnitudes.

        Args:
            whole: scale of the tensor, 1 for a format without one.
        """
        raise NotImplementedError

    def joined(self, codes: Array) -> Array:
        """Return bytes of one number each as they are stored, `(rows, bytes)`."""
        import numpy as np

        if self.packed == 1:
            return codes
        return (codes[:, ::2] << np.uint8(4)) | (codes[:, 1::2] & np.uint8(15))


def neighbours(exact: Array, kind: Any, draw: Any) -> Array:
    """Round to a small float type: to nearest even, or to one of both neighbours at random."""
    import numpy as np

    if draw is None:
        return codes_of(exact, kind).view(kind)
    numbers = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    known = np.unique(numbers[np.isfinite(numbers)])
    above = np.clip(np.searchsorted(known, exact), 1, len(known) - 1)
    low, high = known[above - 1], known[above]
    up = draw(exact.shape) < (exact - low) / (high - low)
    return np.where(up, high, low).astype(kind)


class _Mx(Format):
    """Float8 e4m3 with a power of two for each 32 columns (mxfp8)."""

    def numbers(self, raw: Array) -> Array:
        import ml_dtypes
        import numpy as np

        found = np.empty(raw.shape, np.float32)
        widen(np.ascontiguousarray(raw).view(ml_dtypes.float8_e4m3fn), found)
        return found

    def rounded(self, exact: Array, draw: Any) -> Array:
        import ml_dtypes
        import numpy as np

        found: Array = neighbours(exact, ml_dtypes.float8_e4m3fn, draw).view(np.uint8)
        return found

    def factors(self, stored: Array) -> Array:
        import numpy as np

        return (stored.astype(np.uint32) << np.uint32(23)).view(np.float32)

    def fitting(self, largest: Array, whole: Any) -> Array:
        import numpy as np

        needed = np.maximum(largest / np.float32(self.most), np.float32(2.0**-127))
        power = np.ceil(np.log2(needed)).astype(np.int32) + 127
        return np.where(largest == 0, 0, np.clip(power, 0, 254)).astype(np.uint8)


class _Nv(Format):
    """Float4 e2m1, two in a byte, with a float8 for each 16 columns (nvfp4)."""

    def numbers(self, raw: Array) -> Array:
        import numpy as np

        found: Array = np.take(_pairs(), raw, axis=0, mode="clip").reshape(len(raw), -1)
        return found

    def rounded(self, exact: Array, draw: Any) -> Array:
        import ml_dtypes
        import numpy as np

        if draw is not None:
            half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
            known = np.concatenate((-half[:0:-1], half))
            above = np.clip(np.searchsorted(known, exact), 1, len(known) - 1)
            low, high = known[above - 1], known[above]
            exact = np.where(draw(exact.shape) < (exact - low) / (high - low), high, low)
        found: Array = codes_of(exact, ml_dtypes.float4_e2m1fn) & np.uint8(15)
        return found

    def factors(self, stored: Array) -> Array:
        import ml_dtypes
        import numpy as np

        found: Array = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return found

    def fitting(self, largest: Array, whole: Any) -> Array:
        import ml_dtypes
        import numpy as np

        scales = np.minimum(largest / np.float32(self.most) / whole, np.float32(448))
        found: Array = scales.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return found


@cache
def _pairs() -> Array:
    """Return both numbers of every byte of float4, the upper half first."""
    import numpy as np

    half = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    table, every = np.concatenate((half, -half)), np.arange(256)
    return np.stack((table[every >> 4], table[every & 15]), axis=1)


MX, NV = _Mx(32, 1, 448.0), _Nv(16, 2, 6.0)


class GroupRows:
    """The rows of a micro-scaled weight.

    Args:
        tensor: as it is stored; its shape is that of the weight.
        scales: name and tensor of the groups' scales.
        whole: name and tensor of the scale of the tensor, None for a format without one.
    """

    unit = 1

    @property
    def fills(self) -> int:
        """Number of rows and columns up to whose multiples the format fills weights with zeros."""
        return self._kind.group

    def __init__(
        self,
        tensor: StoredTensor,
        kind: Format,
        scales: tuple[str, Tensor],
        whole: tuple[str, Tensor] | None = None,
    ) -> None:
        self._tensor, self._kind, (self._name, self._scales) = tensor, kind, scales
        self._rows, self._columns = tensor.shape
        self._given = whole

    @cached_property
    def _tiles(self) -> Array:
        import numpy as np

        return np.frombuffer(self._scales.raw(), np.uint8)

    @cached_property
    def _stored(self) -> Array:
        """The scales by row and group, as they are now."""
        return untiled(self._tiles, self._rows, self._columns // self._kind.group).copy()

    @cached_property
    def _whole(self) -> Any:
        import numpy as np

        return np.float32(1 if self._given is None else self._given[1].item())

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row begins."""
        return start * self._columns // self._kind.packed

    def raw(self, start: int, stop: int) -> Array:
        """Return rows as they are stored, `(rows, bytes)`."""
        import numpy as np

        found = np.empty((stop - start, self._columns // self._kind.packed), np.uint8)
        self._tensor.source.read_into(
            self._tensor.info.start + self.place(start), found.reshape(-1)
        )
        return found

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of stored rows, with the scales that they have now."""
        step = self._steps(self._stored[start : start + len(raw)])
        return (self._grouped(self._kind.numbers(raw)) * step).reshape(len(raw), -1)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return rows after a change; the scales are kept for `beside`.

        Each changed group keeps its scale, or gets that of the format's rule, whichever is nearer.
        """
        import numpy as np

        moved = self._grouped(change).any(axis=2)
        if not moved.any():
            return raw
        scales = self._stored[start : start + len(raw)]
        new = self._grouped((weights + change).astype(np.float32, copy=False))[moved]
        kept = scales[moved]
        fresh = self._kind.fitting(np.abs(new).max(axis=1), self._whole)
        codes, error = self._coded(new, kept, draw)
        others, other = self._coded(new, fresh, draw)
        better = other < error
        codes[better] = others[better]
        scales[moved] = np.where(better, fresh, kept)
        grouped = np.empty((*moved.shape, self._kind.group), np.uint8)
        grouped[moved] = codes
        packed = self._kind.joined(grouped.reshape(len(raw), -1))
        spread = np.repeat(moved, self._kind.group // self._kind.packed, axis=1)
        return np.where(spread, packed, raw)

    def _coded(self, values: Array, scales: Array, draw: Any) -> tuple[Array, Array]:
        """Return the codes of groups of weights at some scales, and their squared errors.

        Errors of random rounding are those of what lies outside the range, so that they choose nothing.
        """
        import numpy as np

        step = self._steps(scales)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.where(step == 0, np.float32(0), values / step)
        inside = np.clip(exact, -self._kind.most, self._kind.most)
        codes = self._kind.rounded(inside, draw)
        back = (self._values(codes) if draw is None else inside) * step
        return codes, ((back - values) ** 2).sum(axis=1)

    def _values(self, codes: Array) -> Array:
        """Return codes of one byte each as numbers."""
        return self._kind.numbers(self._kind.joined(codes))

    def _steps(self, scales: Array) -> Array:
        """Return the factor of every group's numbers, with an axis for these."""
        import numpy as np

        found: Array = (self._whole * self._kind.factors(scales)).astype(np.float32)[..., None]
        return found

    def _grouped(self, values: Array) -> Array:
        return values.reshape(len(values), -1, self._kind.group)

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales, those of groups in their tiles."""
        kept = {} if self._given is None else {self._given[0]: bytes(self._given[1].raw())}
        return {self._name: tiled(self._stored, self._tiles).tobytes(), **kept}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        import numpy as np

        numbers = np.abs(self._kind.numbers(self.raw(start, stop)))
        bits = 3 if self._kind.packed == 1 else 1
        least = 2.0**-6 if self._kind.packed == 1 else 1.0
        power = np.floor(np.log2(np.maximum(numbers, np.float32(least))))
        spacing = np.exp2(power - bits).astype(np.float32)
        step = self._steps(self._stored[start:stop])
        return (self._grouped(spacing) * step).reshape(len(numbers), -1)

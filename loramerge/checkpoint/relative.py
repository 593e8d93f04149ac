"""ComfyUI's W4A8 and W6A8 rows: rotated codes with a relative scale for each group of columns.

    rotated weight = round(level of the code · relative scale of its group) · scale of the row

The rounded products are whole numbers from -127 to 127. Levels are those of a table of 16, or whole
numbers of 4 or 6 bits around zero. At 6 bits the lower halves of all codes of a row come first.

Source: comfy-kitchen, `quantize_w4a8_int8_weight` and `_pack_codes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loramerge.checkpoint.rotated import codes_of_pairs, pairs_of_codes, rotation
from loramerge.checkpoint.storage import Array
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["Relative", "RelativeRows", "quantised"]

_MOST = 127
_LEAST = 1e-8  # of a scale
_PASSES = 2  # in which scales of groups are fitted to their codes


@dataclass(frozen=True)
class Relative:
    """The parts of such a weight.

    Args:
        codes: as they are stored, of the shape of the weight.
        relative, rows: names and tensors of the scales of groups and of rows.
        table: of the 16 levels, None for whole numbers.
        bits: of a code; group: columns with one relative scale; turn: columns that are rotated together.
    """

    codes: StoredTensor
    relative: tuple[str, Tensor]
    rows: tuple[str, Tensor]
    table: Tensor | None
    bits: int
    group: int
    turn: int

    @property
    def levels(self) -> Array:
        """The level of every code, in float32."""
        import numpy as np

        if self.table is not None:
            return self.table.numpy().astype(np.float32).reshape(-1)
        middle = 1 << (self.bits - 1)
        return np.arange(-middle, middle, dtype=np.float32)


def codes_of(raw: Array, columns: int, bits: int) -> Array:
    """Return codes of one byte each, `(rows, columns)`."""
    import numpy as np

    found = codes_of_pairs(raw[:, : columns // 2])
    if bits == 6:
        high = raw[:, columns // 2 :].view(np.uint8)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)
        rest = ((high[..., None] >> shifts) & np.uint8(3)).reshape(len(raw), -1)
        found |= rest << np.uint8(4)
    return found


def stored_codes(codes: Array, bits: int) -> Array:
    """Return codes as they are stored: the inverse of `codes_of`."""
    import numpy as np

    low = pairs_of_codes(codes & np.uint8(15))
    if bits == 4:
        return low
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    high = ((codes >> np.uint8(4)).reshape(len(codes), -1, 4) << shifts).sum(axis=2, dtype=np.uint8)
    return np.concatenate((low, high), axis=1)


def quantised(values: Array, levels: Array, kind: Any) -> tuple[Array, Array, Array]:
    """Quantise rotated rows by the rule of the format.

    Args:
        values: `(rows, groups, columns of a group)`, float32.
        levels: that codes may have, in rising order.
        kind: numpy type of the relative scales.

    Returns:
        Indices of levels, relative scales `(rows, groups)` and scales of rows `(rows,)`.
    """
    import numpy as np

    top = np.abs(levels).max() if np.abs(levels).max() > 1 else np.float32(1)
    scale = np.maximum(np.abs(values).max(axis=-1, keepdims=True) / top, np.float32(_LEAST))
    for _ in range(_PASSES):
        chosen = levels[_nearest(values / scale, levels)]
        squares = np.maximum((chosen * chosen).sum(-1, keepdims=True), np.float32(_LEAST))
        fitted = (values * chosen).sum(-1, keepdims=True) / squares
        scale = np.maximum(fitted, np.float32(_LEAST))
    chosen = levels[_nearest(values / scale, levels)]
    largest = np.abs(chosen * scale).max(axis=(1, 2))
    rows = np.maximum(largest / np.float32(_MOST), np.float32(_LEAST)).astype(np.float32)
    relative = (scale[..., 0] / rows[:, None]).astype(kind)
    indices, _ = assigned(values, levels, relative, rows, None)
    return indices, relative, rows


def _nearest(values: Array, levels: Array) -> Array:
    """Return the index of the level that is nearest to each value, the lower of two."""
    import numpy as np

    last = len(levels) - 1
    place = np.searchsorted(levels, values)
    low, high = np.clip(place - 1, 0, last), np.clip(place, 0, last)
    nearer = np.abs(values - levels[high]) < np.abs(values - levels[low])
    return np.where(nearer, high, low)


def decoded(levels: Array, relative: Array) -> Array:
    """Return the whole numbers that the levels of every group stand for."""
    import numpy as np

    exact = levels * relative.astype(np.float32)[..., None]
    return np.clip(np.rint(exact), -_MOST, _MOST)


def assigned(
    values: Array, levels: Array, relative: Array, rows: Array, draw: Any
) -> tuple[Array, Array]:
    """Return the indices of levels for rotated groups at some scales, and their squared errors.

    Args:
        values: `(…, columns of a group)`; relative: `(…,)`; rows: of that shape or of the first axis.
        draw: chooses one of both neighbours at random, None the nearest.
    """
    import numpy as np

    wide = rows.reshape(*rows.shape, *[1] * (values.ndim - rows.ndim)).astype(np.float32)
    target = values / wide
    table = decoded(levels, relative)
    apart = np.abs(target[..., None] - table[..., None, :])
    found = apart.argmin(axis=-1)
    if draw is not None:
        last = len(levels) - 1
        below = (table[..., None, :] <= target[..., None]).sum(axis=-1) - 1
        low = np.clip(below, 0, last - 1)
        near = [
            np.take_along_axis(table[..., None, :], (low + n)[..., None], -1)[..., 0]
            for n in (0, 1)
        ]
        width = near[1] - near[0]
        share = np.where(width > 0, (target - near[0]) / np.where(width > 0, width, 1), 0)
        found = low + (draw(target.shape) < share)
        inside = np.clip(target, table.min(-1)[..., None], table.max(-1)[..., None])
        return found, (((inside - target) * wide) ** 2).sum(axis=-1)
    back = np.take_along_axis(table[..., None, :], found[..., None], -1)[..., 0]
    return found, (((back - target) * wide) ** 2).sum(axis=-1)


class RelativeRows:
    """The rows of such a weight."""

    unit = 1

    def __init__(self, held: Relative) -> None:
        self._held = held
        self._columns = held.codes.shape[1]
        self._width = self._columns * held.bits // 8

    @cached_property
    def _relative(self) -> Array:
        """The scales of groups as they are now."""
        return self._held.relative[1].numpy().copy()

    @cached_property
    def _rows(self) -> Array:
        """The scales of rows as they are now."""
        import numpy as np

        return self._held.rows[1].numpy().astype(np.float32).reshape(-1)

    @cached_property
    def _matrix(self) -> Array:
        return rotation(self._held.turn)

    @property
    def _usable(self) -> tuple[Array, int]:
        """The levels that the quantiser gives, and the code of the first."""
        levels = self._held.levels
        first = 0 if self._held.table is not None else 1
        return levels[first:], first

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which a row begins."""
        return start * self._width

    def raw(self, start: int, stop: int) -> Array:
        """Return rows as they are stored."""
        import numpy as np

        found = np.empty((stop - start, self._width), np.uint8)
        offset = self._held.codes.info.start + self.place(start)
        self._held.codes.source.read_into(offset, found.reshape(-1))
        return found

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of stored rows, with the scales that they have now."""
        return self.turned(self._rotated(raw, start))

    def _rotated(self, raw: Array, start: int) -> Array:
        import numpy as np

        stop = start + len(raw)
        codes = codes_of(raw, self._columns, self._held.bits)
        levels = self._grouped(self._held.levels[codes])
        relative = self._relative[start:stop].astype(np.float32)[..., None]
        whole = np.clip(np.rint(levels * relative), -_MOST, _MOST)
        found: Array = whole * self._rows[start:stop, None, None]
        return found.reshape(len(raw), -1)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return rows after a change, which is added before the rotation back.

        A row that fits keeps its scale, and each changed group keeps its own or gets that of its
        numbers, whichever is nearer. A row that does not fit is quantised anew.
        """
        import numpy as np

        moved = np.flatnonzero(change.any(axis=1))
        if not len(moved):
            return raw
        turned = self._grouped(self.turned(change[moved]))
        exact = self._grouped(self._rotated(raw, start)[moved]) + turned
        rows = moved + start
        codes = self._grouped(codes_of(raw, self._columns, self._held.bits)[moved]).copy()
        fits = np.abs(exact).max(axis=(1, 2)) <= (_MOST + 0.5) * self._rows[rows]
        levels, first = self._usable
        touched = np.any(turned != 0, axis=2) & fits[:, None]
        if touched.any():
            owner = rows[np.nonzero(touched)[0]]
            kept = self._relative[rows][touched]
            part, scale = exact[touched], self._rows[owner]
            _, fresh, own = quantised(part[:, None], levels, np.float32)
            wanted = fresh[:, 0] * own / scale
            near = np.clip(wanted, 0, _most_of(kept.dtype)).astype(kept.dtype)
            one, error = assigned(part, levels, kept, scale, draw)
            other, others = assigned(part, levels, near, scale, draw)
            better = others < error
            codes[touched] = np.where(better[:, None], other, one) + first
            scales = self._relative[rows]
            scales[touched] = np.where(better, near, kept)
            self._relative[rows] = scales
        if not fits.all():
            grown = rows[~fits]
            found, relative, wide = quantised(exact[~fits], levels, self._relative.dtype)
            if draw is not None:
                found, _ = assigned(exact[~fits], levels, relative, wide, draw)
            codes[~fits] = found + first
            self._relative[grown], self._rows[grown] = relative, wide
        packed = raw.copy()
        flat = codes.reshape(len(moved), -1).astype(np.uint8)
        packed[moved] = stored_codes(flat, self._held.bits)
        return packed

    def _grouped(self, values: Array) -> Array:
        return values.reshape(len(values), -1, self._held.group)

    def turned(self, rows: Array) -> Array:
        """Return rows rotated, or rotated back."""
        import numpy as np

        groups = rows.reshape(len(rows), -1, len(self._matrix))
        found: Array = np.matmul(groups, self._matrix).reshape(rows.shape)
        return found

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scales of groups and rows."""
        (relative, _), (name, rows) = self._held.relative, self._held.rows
        return {
            relative: self._relative.tobytes(),
            name: self._rows.astype(numpy_dtype(rows.dtype)).tobytes(),
        }

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers of any rows, before the rotation back."""
        import numpy as np

        levels = self._held.levels
        gap = np.float32((levels[-1] - levels[0]) / (len(levels) - 1))
        relative = self._relative[start:stop].astype(np.float32)
        step = np.maximum(relative * gap, 1) * self._rows[start:stop, None]
        return np.repeat(step, self._held.group, axis=1)


def _most_of(dtype: Any) -> float:
    """Return the largest number of a type."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)

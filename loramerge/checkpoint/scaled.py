"""Weights that are stored as small numbers times a scale: `W = stored · scale`.

The scale is one number for the whole tensor, or one for each of its rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loramerge.checkpoint.storage import Array, Codec
from loramerge.errors import FormatError, NumericsError
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import ArrayTensor, Tensor

__all__ = ["ScaledCodec", "ScaledTensor", "is_scale"]


def is_scale(scale: Tensor, weight: Tensor) -> bool:
    """Return whether a tensor is one number, or one for each row of a weight."""
    rows = weight.shape[0] if weight.shape else 1
    by_row = scale.shape[:1] == (rows,) and math.prod(scale.shape[1:]) == 1
    return scale.size == 1 or by_row


@dataclass(frozen=True)
class ScaledTensor:
    """A weight with its scale beside it.

    Args:
        name: of the tensor that holds the scale, in the same file as the weight.
        scale: see `is_scale`.
        weight: as it is stored.
        unit: number that the scale is counted in.
        marks: names of further tensors that describe the weight.
    """

    name: str
    scale: Tensor
    weight: Tensor
    unit: float = 1.0
    marks: tuple[str, ...] = ()
    packing: ClassVar[None] = None

    @property
    def beside(self) -> tuple[str, ...]:
        """The scale is written together with the weight."""
        return (self.name,)

    @property
    def nbytes(self) -> int:
        """Bytes of the scale."""
        return self.scale.nbytes

    def column(self) -> Array:
        """Return the scale of every row, as a float32 `(rows, 1)`.

        Raises:
            FormatError: if a scale is not a positive number.
        """
        import numpy as np

        values = self.scale.numpy().astype("float32").reshape(-1, 1) * np.float32(self.unit)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise FormatError("the scale of a quantised weight is not positive", module=self.name)
        rows = self.weight.shape[0] if self.weight.shape else 1
        return np.broadcast_to(values, (rows, 1))

    def dequantise(self, rows: Array, start: int) -> Array:
        """Multiply stored rows by their scales, in place."""
        rows *= self.column()[start : start + len(rows)]
        return rows

    def codec(self, dtype: str) -> Codec:
        """Return the codec that a bake computes and rounds with."""
        return ScaledCodec(self, dtype)


class ScaledCodec:
    """The conversion between weights and their stored form.

    Sums are made of stored values, `stored + ΔW / scale`, so that a row which no delta touches keeps
    its very bits. The scale stays as it is unless values would overflow; then the largest one of the
    tensor (or of the row, where each has its own) is given the type's largest number.
    """

    plain = False

    def __init__(self, held: ScaledTensor, dtype: str) -> None:
        column = held.column()
        self._held = held
        self._stored, self._now = column, column
        self._dtype = numpy_dtype(dtype)
        self._shared = held.scale.size == 1
        self._largest: Any = None

    @property
    def changed(self) -> bool:
        """True if the scale differs from the stored one."""
        return self._now is not self._stored

    def weights(self, stored: Array, start: int, out: Array) -> Array:
        """Return the weights of stored values that begin at row `start`, computed into `out`."""
        import numpy as np

        return np.multiply(stored, self._stored[start : start + len(stored)], out=out)

    def add(self, stored: Array, asked: Array, start: int, out: Array) -> None:
        """Compute the values to be rounded and stored into `out`; note how large they are."""
        import numpy as np

        rows = slice(start, start + len(stored))
        np.divide(asked, self._now[rows], out=out)
        if self.changed:
            ratio = self._stored[rows] / self._now[rows]
            out += np.multiply(stored, ratio, where=ratio != 1, out=stored.copy())
        else:
            out += stored
        if self._largest is None:
            self._largest = np.zeros((len(self._stored), 1), out.dtype)
        largest = self._largest[rows]
        np.max(out, axis=1, keepdims=True, out=largest)
        np.maximum(largest, -np.min(out, axis=1, keepdims=True), out=largest)

    def fits(self, start: int, stop: int) -> bool:
        """Return whether the rows just added fit the type, or a second pass will make them."""
        import numpy as np

        if self._largest is None or self.changed:
            return True
        largest = self._largest[start:stop]
        return bool((self._holds(largest) | ~np.isfinite(largest)).all())

    def change(self, rounded: Array, weights: Array, start: int) -> None:
        """Turn rounded stored values (as floats, in place) into the change of the weights."""
        rounded *= self._now[start : start + len(rounded)]
        rounded -= weights

    def overflowed(self) -> bool:
        """Return whether values were too large for the type; if so, the scale is larger from now on."""
        import numpy as np

        largest = self._largest
        self._largest = None
        if largest is None or self.changed:
            return False
        largest = np.where(np.isfinite(largest), largest, 0)  # the second pass finds what is not
        if self._shared:
            largest = np.broadcast_to(largest.max(), largest.shape)
        fits = self._holds(largest)
        if fits.all():
            return False
        grown = self._stored * np.where(fits, 1.0, largest / self._most()).astype("float32")
        self._now = np.where(fits, self._stored, grown).astype("float32")
        self._fit()
        return True

    def _most(self) -> float:
        """Return the type's largest number."""
        import ml_dtypes
        import numpy as np

        whole = self._dtype.kind in "iu"
        return float((np.iinfo if whole else ml_dtypes.finfo)(self._dtype).max)

    def _holds(self, largest: Array) -> Any:
        """Return a mask of the values that the type holds after rounding."""
        import numpy as np

        if self._dtype.kind in "iu":
            return np.rint(largest) <= self._most()
        with np.errstate(over="ignore", invalid="ignore"):
            return np.isfinite(largest.astype(self._dtype).astype("float32"))

    def _fit(self) -> Array:
        """Round a changed scale up to its stored type; return the stored values, by row.

        Raises:
            NumericsError: if that type cannot hold it.
        """
        import numpy as np

        kind, unit = numpy_dtype(self._held.scale.dtype), np.float32(self._held.unit)
        with np.errstate(over="ignore"):
            stored = (self._now / unit).astype(kind)
        low = stored.astype("float32") * unit < self._now
        stored = np.where(low, np.nextafter(stored, kind.type(np.inf)), stored).astype(kind)
        if not np.isfinite(stored.astype("float32")).all():
            raise NumericsError(
                "the scale of this weight would have to be larger than its type can hold",
                module=self._held.name,
                hint="lower the weights of the adapters, or bake into the base it was made from",
            )
        same = self._now == self._stored
        before = np.broadcast_to(self._held.scale.numpy().reshape(-1, 1), stored.shape)
        stored = np.where(same, before, stored).astype(kind)
        self._now = np.where(same, self._stored, stored.astype("float32") * unit)
        return stored

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the scale."""
        scale = self._held.scale
        raw = ArrayTensor(self._fit()[: scale.size]).raw() if self.changed else scale.raw()
        return {self._held.name: bytes(raw)}

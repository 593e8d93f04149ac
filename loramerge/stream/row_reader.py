"""Read rows of a parameter into buffers, wherever and however a checkpoint stores it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loramerge.checkpoint import Place
from loramerge.errors import NumericsError
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.halves import widen
from loramerge.stream.reading import read_weights, stored_rows, weights_of
from loramerge.stream.walk import Buffers

__all__ = ["RowReader", "not_finite"]


class RowReader:
    """Reads blocks of rows of a parameter as floats, wherever and however it is stored."""

    def __init__(self, place: Place, kind: str, buffers: Buffers) -> None:
        self._place, self._kind, self._buffers = place, kind, buffers
        self._held = place.require_held()
        self._rows = stored_rows(place.tensor) if self._held.packing is None else None
        self._mixed = read_weights([(0, place)], kind) if place.heads else None
        self._whole = weights_of(place, kind) if place.transposed else None

    def draw(self, rows: Sequence[int], out: Any) -> None:
        """Read single rows of a parameter that is stored plainly (`is_plain`) into an array.

        They are not checked.
        """
        import numpy as np

        assert self._rows is not None
        raw = np.empty(out.shape, numpy_dtype(self._place.tensor.dtype))
        first = self._place.rows[0]
        for place, row in enumerate(rows):
            found = self._rows(first + row, first + row + 1, raw[place : place + 1])
            raw[place] = found[0]
        widen(raw, out)

    def fill(self, start: int, stop: int, out: Any) -> Any:
        """Read rows of the parameter into an array.

        Raises:
            NumericsError: if they hold NaN or infinity.
        """
        import numpy as np

        finite = self._whole is None and self._mixed is None
        if self._whole is not None:
            out[:] = self._whole[start:stop]
        if self._mixed is not None:
            out[:] = self._mixed(start, stop)
        for low, high, begin in self._place.pieces if finite else ():
            first, last = max(start, begin), min(stop, begin + high - low)
            if first >= last:
                continue
            stored = low + first - begin
            shape = (last - first, out.shape[1])
            part = out[first - start : last - start]
            if self._held.packing is not None:
                finite = False
                part[:] = self._held.packing.weights(stored, stored + last - first)
                continue
            assert self._rows is not None
            kind = numpy_dtype(self._place.tensor.dtype)
            raw = self._rows(stored, stored + last - first, self._buffers.get("read", kind, shape))
            finite = widen(raw, part) and finite
            if self._held.beside:
                finite = False
                part[:] = self._held.dequantise(part, stored)
        if not finite and not np.isfinite(out.sum()) and not np.isfinite(out).all():
            raise not_finite(self._place)
        return out


def not_finite(place: Place) -> NumericsError:
    """Return the error of a parameter that holds NaN or infinity."""
    return NumericsError(
        "NaN or infinity in a checkpoint that is merged",
        file=place.file.path,
        module=place.name,
        hint="give a checkpoint without them",
    )

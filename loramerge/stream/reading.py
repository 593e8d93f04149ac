"""Reading rows of the unmodified weights of a site, wherever a base stores them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from loramerge.adapter.delta import ReadRows
from loramerge.checkpoint import Place
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import StoredTensor

__all__ = ["Stretch", "reader"]

# a place, and the row of the site's weight at which its rows begin
Stretch = tuple[int, Place]


def reader(stretches: Sequence[Stretch], dtype: str) -> ReadRows:
    """Return the function that reads any rows of a weight, flattened to `(rows, in·kh·kw)`.

    Args:
        stretches: where its rows lie, those of one module each; rows of modules that are left out
            must not be asked for.
        dtype: numpy float dtype of what is read.
    """
    ordered = sorted(stretches, key=lambda stretch: stretch[0])

    def read(start: int, stop: int) -> Any:
        import numpy as np

        found = []
        for begin, place in ordered:
            first, last = max(start, begin), min(stop, begin + place.shape[0])
            if first < last:
                found += _rows(place, first - begin, last - begin, dtype)
        return found[0] if len(found) == 1 else np.concatenate(found)

    return read


def _rows(place: Place, start: int, stop: int, dtype: str) -> list[Any]:
    """Return rows of a module, in pieces that follow each other."""
    if place.transposed:
        return [_stored(place, 0, place.tensor.shape[0], dtype).T[start:stop]]
    found = []
    for low, high, begin in sorted(place.pieces, key=lambda piece: piece[2]):
        first, last = max(start, begin), min(stop, begin + high - low)
        if first < last:
            found.append(_stored(place, low + first - begin, low + last - begin, dtype))
    return found


def _stored(place: Place, start: int, stop: int, dtype: str) -> Any:
    """Return the weights in rows of the stored tensor."""
    import numpy as np

    tensor = place.tensor
    columns = math.prod(tensor.shape[1:])
    if isinstance(tensor, StoredTensor):
        kind = numpy_dtype(tensor.dtype)
        raw = np.empty((stop - start, columns), kind)
        offset = tensor.info.start + start * columns * kind.itemsize
        tensor.source.read_into(offset, raw.reshape(-1).view(np.uint8))
        rows = raw.astype(dtype)
    else:
        rows = tensor.numpy().reshape(-1, columns)[start:stop].astype(dtype)
    return place.require_held().dequantise(rows, start)

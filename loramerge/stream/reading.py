"""Read rows of the unmodified weights of a site, wherever a base stores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from loramerge.adapter.delta import ReadRows
from loramerge.checkpoint import Place
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.halves import widen
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = [
    "Stretch", "alternating", "read_weights", "stored_rows", "stored_weights", "together", "weights_of",
]  # fmt: skip

# the row of a site's weight at which the rows of a place begin, and the place
Stretch = tuple[int, Place]


# function that gives the weights that stored rows of the tensor at a place hold
StoredWeights = Callable[[Place, int, int], Any]


def read_weights(
    stretches: Sequence[Stretch],
    dtype: str,
    *,
    stored: StoredWeights | None = None,
) -> ReadRows:
    """Return the function that reads any rows of a weight, flattened to `(rows, in·kh·kw)`.

    Args:
        stretches: where its rows lie, those of one module each; rows of modules that are left out
            must not be asked for.
        dtype: numpy float dtype of the result.
        stored: gives other weights than those that are stored.
    """
    weights = stored or stored_weights(dtype)
    ordered = sorted(stretches, key=lambda stretch: stretch[0])

    def read(start: int, stop: int) -> Any:
        import numpy as np

        found = []
        for begin, place in ordered:
            first, last = max(start, begin), min(stop, begin + place.shape[0])
            if first < last:
                found += _rows(place, first - begin, last - begin, weights)
        return found[0] if len(found) == 1 else np.concatenate(found)

    return read


def together(stored: Any, head: int) -> Any:
    """Return rows of whole heads with the halves of each together, whose rows alternate in a tensor.

    Args:
        head: rows of a head.
    """
    halves = stored.reshape(-1, head // 2, 2, stored.shape[1])
    return halves.swapaxes(1, 2).reshape(stored.shape)


def alternating(rows: Any, head: int) -> Any:
    """Return rows of whole heads as a tensor stores them: the inverse of `together`."""
    halves = rows.reshape(-1, 2, head // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def weights_of(place: Place, dtype: str) -> Any:
    """Return the whole weight at a place, flattened to `(out, in·kh·kw)`."""
    return read_weights([(0, place)], dtype)(0, place.shape[0])


def _rows(place: Place, start: int, stop: int, weights: StoredWeights) -> list[Any]:
    """Return rows of a module, in pieces that follow each other."""
    if place.transposed:
        return [weights(place, *place.rows).T[start:stop]]
    if place.heads:
        first, last = place.whole_heads(start, stop)
        stored = weights(place, place.rows[0] + first, place.rows[0] + last)
        return [together(stored, place.head)[start - first : stop - first]]
    found = []
    for low, high, begin in sorted(place.pieces, key=lambda piece: piece[2]):
        first, last = max(start, begin), min(stop, begin + high - low)
        if first < last:
            found.append(weights(place, low + first - begin, low + last - begin))
    return found


def stored_weights(dtype: str) -> StoredWeights:
    """Return the function that gives the weights that rows of a stored tensor hold.

    Args:
        dtype: see `read_weights`.
    """
    import numpy as np

    def read(place: Place, start: int, stop: int) -> Any:
        held = place.require_held()
        if held.packing is not None:
            return held.packing.weights(start, stop).astype(dtype, copy=False)
        raw = stored_rows(place.tensor)(start, stop)
        rows = np.empty(raw.shape, dtype)
        widen(raw, rows)
        return held.dequantise(rows, start)

    return read


class ReadStored(Protocol):
    """Function that returns rows of a tensor as they are stored, flattened to `(rows, in·kh·kw)`.

    It reads into `out` if that is given and the tensor is in a file.
    """

    def __call__(self, start: int, stop: int, out: Any = None) -> Any: ...


def stored_rows(tensor: Tensor) -> ReadStored:
    """Return the function that reads rows of a tensor, of a file or in memory."""
    import numpy as np

    columns = math.prod(tensor.shape[1:])
    if not isinstance(tensor, StoredTensor):
        whole = tensor.numpy().reshape(-1, columns)
        return lambda start, stop, out=None: whole[start:stop]
    dtype = numpy_dtype(tensor.dtype)

    def read(start: int, stop: int, out: Any = None) -> Any:
        rows = np.empty((stop - start, columns), dtype) if out is None else out
        offset = tensor.info.start + start * columns * dtype.itemsize
        tensor.source.read_into(offset, rows.reshape(-1).view(np.uint8))
        return rows

    return read

"""Products of thin factors, a few columns at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["multiply"]

# OpenBLAS copies the factors of larger products, which takes as long as to multiply thin ones
_SMALL = 900_000  # rows · rank · columns
_THIN = 128  # rank up to which that counts
_WHOLE = 64  # columns whose numbers are computed alike in any product


def multiply(up: Array, down: Array, out: Array) -> None:
    """Fill an array with `up @ down`, with the bits that the whole product has.

    Args:
        up: `(rows, rank)`; down: `(rank, columns)`; out: `(rows, columns)`.
    """
    import numpy as np

    (rows, rank), columns = up.shape, down.shape[1]
    width = _SMALL // max(1, rows * rank) // _WHOLE * _WHOLE
    alike = down.dtype == np.float32 and rank <= _THIN and columns % _WHOLE == 0
    alike = alike and up.flags.c_contiguous and down.flags.c_contiguous  # else other sums are made
    if not alike or not 0 < width < columns:
        np.matmul(up, down, out=out)
        return
    for start, stop in pairwise([*range(0, columns, width), columns]):
        np.matmul(up, down[:, start:stop], out=out[:, start:stop])

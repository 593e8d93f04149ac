"""Changes moved onto the numbers that a storage holds, so that rounding does not swallow weak ones.

A stored weight lies on a grid. A change of less than half a step is lost when the sum is rounded to
nearest. Here the change is replaced by whole steps beforehand, in one of two ways:

    feedback   n_j = round(x_j + e_(j-1)),  e_j = x_j + e_(j-1) − n_j  along each row, x in steps.
               The error of one weight is added to the next: sums of steps along rows are kept.
    balanced   n = sign(x) · ⌊|x| + 1 − t⌋,  t ≤ ½ so that ⟨n, x⟩ = ⟨x, x⟩ over a block of rows.
               A lower threshold than ½ keeps the whole change, with less noise than chance.

Source: error diffusion as in sigma-delta modulation (Inose and Yasuda, 1963); the second by definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loramerge.files.dtypes import numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["ELEMENTS", "WAYS", "moved_onto", "spacing"]

ELEMENTS = 1 << 20  # of a block: feedback walks along rows, so it is fast on many of them
_HALVINGS = 24
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples are spread evenly between whole numbers


def moved_onto(way: str, change: Array, steps: Array) -> Array:
    """Return a change in whole steps, of the shape and type of `change`.

    Args:
        way: one of `WAYS`.
        change: `(rows, columns)`.
        steps: distance between neighbouring numbers around each weight; 0 leaves the change as it is,
            and so does one that the change is too many of, as beside the zeros of float32.
    """
    import numpy as np

    known = steps > 0
    with np.errstate(over="ignore"):
        exact = change / np.where(known, steps, 1)
    if not (counted := np.isfinite(exact)).all():
        known, exact = known & counted, np.where(counted, exact, 0)
    whole = WAYS[way](exact, steps)
    found: Array = np.where(known, whole * steps, change).astype(change.dtype, copy=False)
    return found


def _feedback(exact: Array, steps: Array) -> Array:
    """Round along rows; each error, counted in steps, is added to the next number.

    Rows begin with errors that are spread evenly: with none, a row whose sums stay small would lose all.
    """
    import numpy as np

    columns = np.ascontiguousarray(exact.T)
    found = np.empty_like(columns)
    rest = (np.arange(len(exact)) * _GOLDEN % 1 - 0.5).astype(exact.dtype)
    for values, whole in zip(columns, found, strict=True):
        rest += values
        np.rint(rest, out=whole)
        rest -= whole
    return found.T


def _balanced(exact: Array, steps: Array) -> Array:
    """Round with the threshold that keeps the whole change on the grid."""
    import numpy as np

    magnitudes, weights = np.abs(exact), steps**2
    asked = float((magnitudes**2 * weights).sum(dtype=np.float64))
    low, high = 0.0, 0.5
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        whole = np.floor(magnitudes + np.float32(1 - middle))
        kept = float((whole * magnitudes * weights).sum(dtype=np.float64))
        low, high = (middle, high) if kept > asked else (low, middle)
    found: Array = np.copysign(np.floor(magnitudes + np.float32(1 - high)), exact)
    return found


WAYS: dict[str, Callable[[Array, Array], Array]] = {"feedback": _feedback, "balanced": _balanced}


def spacing(stored: Array, dtype: str) -> Array:
    """Return the distance between neighbouring numbers of a type around stored ones, as float32."""
    import ml_dtypes
    import numpy as np

    kind = numpy_dtype(dtype)
    if kind.kind in "iu":
        return np.ones_like(stored)
    info = ml_dtypes.finfo(kind)
    least = float(info.smallest_subnormal)
    _, power = np.frexp(stored)
    found: Array = np.ldexp(np.float32(1), power - 1 - info.nmant).astype(np.float32)
    found[stored == 0] = least
    return np.maximum(found, np.float32(least))

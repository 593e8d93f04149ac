"""The matrices of a delta that operators work on: dense, in rows, in factors."""

from __future__ import annotations

from typing import Any

from loramerge.adapter import Delta
from loramerge.algebra.arrays import Array
from loramerge.errors import NumericsError, Setting

__all__ = ["finite", "matrix", "orthogonal", "require_finite", "row_source"]


def matrix(delta: Delta) -> Array:
    """Return ΔW as `(out, in·kh·kw)` in float64."""
    return delta.dense(dtype="float64").reshape(delta.flat_shape)


def orthogonal(delta: Delta) -> tuple[Array, Array]:
    """Return factors `(out, r)` with orthonormal columns and `(r, in·kh·kw)`.

    Products of other factors would lose precision twice: their conditioning enters squared.
    """
    import numpy as np

    up, down = delta.factors("float64")
    require_finite(up, down)
    left, rest = np.linalg.qr(up)
    return left, rest @ down


def row_source(delta: Delta) -> Any:
    """Return a function of (start, stop) that gives those rows of ΔW in float64."""
    if delta.rank is None:
        whole = finite(matrix(delta))
        return lambda start, stop: whole[start:stop]
    up, down = delta.factors("float64")
    require_finite(up, down)
    return lambda start, stop: finite(up[start:stop] @ down)


def finite(array: Array) -> Array:
    """Return an array, after refusing NaN and infinity; see `require_finite`."""
    require_finite(array)
    return array


def require_finite(*arrays: Array) -> None:
    """Refuse arrays with NaN or infinity in them.

    Raises:
        NumericsError: if there is one; the message blames the input.
    """
    import numpy as np

    for array in arrays:
        wide = array.astype("float32") if array.dtype.itemsize < 4 else array
        # a finite sum has finite parts; the sum of huge finite parts is checked in full
        if not np.isfinite(wide.sum()) and not np.isfinite(wide).all():
            raise NumericsError(
                "NaN or infinity in the input",
                hint=(
                    "inspect it with ",
                    Setting("deep", True),
                    " to list the modules that hold it",
                ),
            )

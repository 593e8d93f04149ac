"""The rounding of stored weights, as noise in a difference of two checkpoints.

A type that keeps p bits stores a weight to within half the distance of its neighbours. Over many
weights this is noise with the variance `spacing² / 12` for each, spread over all directions of a matrix.
Its largest singular value is about `√(largest sum over a row) + √(largest sum over a column)`, and
directions below that look the same as noise.

Source: Bandeira and van Handel, "Sharp nonasymptotic bounds on the norm of random matrices with
independent entries" (2016), theorem 1.1; for the level that a spectrum shows Gavish and Donoho, "The
Optimal Hard Threshold for Singular Values is 4/√3" (2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from loramerge.algebra.arrays import Array
from loramerge.algebra.svd import Decomposition
from loramerge.files.dtypes import numpy_dtype

__all__ = ["NoiseSums", "noise_floor", "noise_level", "precision_of", "spacing"]

_SLACK = 1.05  # the largest singular value of noise varies by a few percent
_GLANCE = 1 << 10  # numbers that are looked at before all of a block
_ODD = 1 / 8  # share of values that need the last bit of a type, from which on it was used


class _Format(NamedTuple):
    """The bits of a float type beside the first of the mantissa, and its smallest normal number."""

    bits: int
    least: float


@cache
def _format_of(dtype: str) -> _Format | None:
    import ml_dtypes

    kind = numpy_dtype(dtype)
    if kind.kind in "iub":
        return None
    info = ml_dtypes.finfo(kind)
    return _Format(int(info.nmant), float(info.smallest_normal))


def spacing(values: Array, dtype: str) -> Array:
    """Return the distance between the numbers of a type around values, in float32.

    Args:
        values: of any shape; only their powers of two matter.
        dtype: safetensors name; the numbers of whole types lie 1 apart.
    """
    import numpy as np

    found = _format_of(dtype)
    if found is None:
        return np.ones(values.shape, "float32")
    powers = np.ascontiguousarray(values, "float32").view("uint32") & np.uint32(0x7F800000)
    least = max(found.least, float(np.finfo("float32").smallest_normal))
    result: Array = np.maximum(powers.view("float32"), np.float32(least))
    result *= np.float32(2.0**-found.bits)
    return result


def precision_of(values: Array, dtype: str) -> str:
    """Return the narrower type whose numbers all values are, or the type they are stored in.

    Checkpoints are often widened; what was rounded to bfloat16 before stays so.

    Args:
        values: a block of weights, as float32 or float64.
        dtype: safetensors name of the type they are stored in.
    """
    import numpy as np

    if dtype not in ("F16", "F32", "F64") or values.size == 0:
        return dtype
    bits = np.ascontiguousarray(values, "float32").view("uint32").reshape(-1)
    for name, dropped in (("BF16", 16), ("F16", 13)):
        if name == dtype:
            break
        below, last = np.uint32((1 << dropped) - 1), np.uint32(1 << dropped)
        if (bits[:_GLANCE] & below).any():  # of most checkpoints a few numbers tell
            continue
        if (bits & below).any() or (dtype == "F64" and (values != values.astype("float32")).any()):
            continue
        if np.count_nonzero(bits & last) >= _ODD * bits.size:
            return name
    return dtype


@dataclass
class NoiseSums:
    """Variances of rounding, summed over the rows and the columns of a difference.

    Args:
        rows: `(m,)`, columns: `(n,)`, in float64.
    """

    rows: Array
    columns: Array

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> NoiseSums:
        """Return the sums of a difference without noise."""
        import numpy as np

        return cls(np.zeros(shape[0]), np.zeros(shape[1]))

    def add(self, start: int, variances: Array) -> None:
        """Add the variances of rows that begin at `start`."""
        import numpy as np

        height, width = variances.shape
        self.rows[start : start + height] += variances @ np.ones(width, variances.dtype)
        self.columns += np.ones(height, variances.dtype) @ variances

    @property
    def energy(self) -> float:
        """The expected ‖E‖_F² of the rounding E."""
        return float(self.rows.sum())

    @property
    def edge(self) -> float:
        """About the largest singular value that rounding has."""
        if not self.rows.size or not self.columns.size:
            return 0.0
        return math.sqrt(float(self.rows.max())) + math.sqrt(float(self.columns.max()))


def noise_level(found: Decomposition, shape: tuple[int, int]) -> float:
    """Return the ‖E‖_F² of noise that a spectrum leaves room for.

    Where only leading directions are known it is what the others hold; else it follows from the median
    singular value, which a signal of low rank does not move.

    Args:
        shape: of the matrix.
    """
    short, long = min(shape), max(shape)
    known = len(found.singular_values)
    if known < short:
        return found.rest / ((1.0 - known / short) * (1.0 - known / long))
    middle = float(found.singular_values[short // 2])
    return middle**2 * short / _median(short / long) ** 2


def _median(ratio: float) -> float:
    """Return the median singular value of noise of unit variance, divided by √(longer side).

    Args:
        ratio: of the sides, at most 1.
    """
    root = math.sqrt(ratio**2 + 14.0 * ratio + 1.0)
    threshold = math.sqrt(2.0 * (ratio + 1.0) + 8.0 * ratio / ((ratio + 1.0) + root))
    coefficient = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    return threshold / coefficient


def noise_floor(found: Decomposition, sums: NoiseSums) -> float:
    """Return the size up to which singular values of a difference may be rounding.

    It is that of the noise which the types allow, or of the noise that the spectrum shows where that is
    less: weights may have been rounded before they were trained, and then they carry none.
    """
    allowed = sums.energy
    if allowed <= 0.0:
        return 0.0
    shape = (len(sums.rows), len(sums.columns))
    shown = noise_level(found, shape)
    return _SLACK * sums.edge * math.sqrt(min(1.0, shown / allowed))

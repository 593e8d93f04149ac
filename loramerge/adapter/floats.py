"""Tensors as floats, and back: read, multiplied, rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loramerge.errors import NumericsError, Setting
from loramerge.files.tensors import ArrayTensor, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["cast", "put", "times", "values"]


def values(tensor: Tensor, dtype: str, shape: tuple[int, ...] | None = None) -> Array:
    """Return a tensor's values as floats of a numpy dtype, reshaped."""
    array = tensor.numpy()
    array = array.astype(dtype, copy=False)
    return array if shape is None else array.reshape(shape)


def times(array: Array, factor: float) -> Array:
    """Return an array times a number; overflows become infinite, which `cast` refuses."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        product: Array = array * factor
    return product


def cast(array: Array, dtype: str, what: str) -> ArrayTensor:
    """Return an array rounded to a safetensors float type, to nearest.

    Raises:
        NumericsError: if a finite value becomes infinite, or a value is not finite to begin with.
    """
    import numpy as np

    from loramerge.files.dtypes import DTYPES, numpy_dtype

    if not np.isfinite(array).all():
        raise NumericsError(
            "NaN or infinity in the result",
            module=what,
            hint=("inspect the inputs with ", Setting("deep", True), " to find it"),
        )
    with np.errstate(over="ignore", under="ignore"):
        rounded = array.astype(numpy_dtype(dtype))
    if not np.isfinite(rounded.astype("float32")).all():
        raise NumericsError(
            f"values up to {np.abs(array).max():.3g} do not fit {DTYPES[dtype].word}",
            module=what,
            hint=("give ", Setting("dtype", "float32"), " or ", Setting("dtype", "bfloat16")),
        )
    return ArrayTensor(rounded)


def put(rows: Array, out: Any, fresh: bool) -> None:
    """Put rows into `out`, or add them to its values."""
    if fresh:
        out[:] = rows
    else:
        out += rows

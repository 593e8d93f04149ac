"""The scales of float8 weights: `W = stored · scale`, for a whole tensor or for each of its rows.

Conventions: `stem.scale_weight` (ComfyUI's scaled float8) and `stem.weight_scale` (ComfyUI's later
files, compressed-tensors) hold the multiplier. `stem.scale_input` and `stem.input_scale` concern
activations, `scaled_fp8` and `stem.comfy_quant` mark files; none of them is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loramerge.errors import FormatError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Scale", "is_scaled", "quantised_by", "scale_of"]

_MULTIPLIERS = (".scale_weight", ".weight_scale")
# endings, on the stem or the whole name, of scales that are not understood
_OTHERS = (".weight_scale_inv", "_scale_inv", "_scale", ".scale", "_scale_2")


@dataclass(frozen=True)
class Scale:
    """What stored values are multiplied by.

    Args:
        name: of the tensor that holds it, in the same file as the weight.
        tensor: one number, or one for each row of the stored weight.
    """

    name: str
    tensor: Tensor

    def column(self, rows: int) -> Array:
        """Return the scale of every row, as a float32 `(rows, 1)`.

        Raises:
            FormatError: if a scale is not a positive number.
        """
        import numpy as np

        values = self.tensor.numpy().astype("float32").reshape(-1, 1)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise FormatError("the scale of a float8 weight is not positive", module=self.name)
        return np.broadcast_to(values, (rows, 1))


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def scale_of(tensors: Mapping[str, Tensor], name: str) -> Scale | None:
    """Return the scale of a weight, None where it has none.

    Args:
        tensors: of the file.

    Raises:
        FormatError: if it has one of a convention that is not understood.
    """
    weight, stem = tensors[name], _stem(name)
    if not weight.dtype.startswith("F8"):
        return None
    known = [stem + ending for ending in _MULTIPLIERS if stem + ending in tensors]
    others = [
        key
        for ending in _OTHERS
        for key in (stem + ending, name + ending)
        if key in tensors and key not in known
    ]
    if others or len(known) > 1:
        raise FormatError(
            "the scale of this float8 weight is stored in a way that is not known",
            module=(others or known)[0],
            expected="one of " + ", ".join(stem + ending for ending in _MULTIPLIERS),
            hint=_HINT,
        )
    if not known:
        return None
    scale = tensors[known[0]]
    rows = weight.shape[0] if weight.shape else 1
    by_row = scale.shape[:1] == (rows,) and math.prod(scale.shape[1:]) == 1
    if not is_float(scale.dtype) or not (scale.size == 1 or by_row):
        raise FormatError(
            "the scale of this float8 weight is neither one number nor one for each row",
            module=known[0],
            expected=f"float32 [] or [{rows}]",
            found=f"{scale.dtype} {list(scale.shape)}",
            hint=_HINT,
        )
    return Scale(known[0], scale)


def is_scaled(tensors: Mapping[str, Tensor]) -> bool:
    """Say whether a file holds float8 weights with scales of any convention."""
    endings = (*_MULTIPLIERS, *_OTHERS)
    return any(
        t.dtype.startswith("F8") and any(_stem(name) + e in tensors for e in endings)
        for name, t in tensors.items()
    )


_HINT = "bake into the base it was made from, then quantise that"


def quantised_by(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return what quantised a weight that is stored as integers, as far as its neighbours tell."""
    state = f"{name}.quant_state.bitsandbytes__"
    for kind in ("nf4", "fp4"):
        if state + kind in tensors:
            return f"{kind.upper()} of bitsandbytes"
    if f"{_stem(name)}.SCB" in tensors or f"{name}.SCB" in tensors:
        return "int8 of bitsandbytes"
    return tensors[name].dtype

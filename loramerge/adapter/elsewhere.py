"""The changes that programs compute in the place of those that kinds are defined as.

They are told, and never imitated: their size says how far a program is from what was trained.
`tests/clients` compares each with the program's own result.

Source: ComfyUI's `comfy/weight_adapter` (`weight_decompose`, `OFTAdapter`, `LoKrAdapter`), Forge's copy
of it, A1111's `network.py` (`apply_weight_decompose`), by their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loramerge.adapter.delta import Delta
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.dora import DoRA
from loramerge.adapter.kinds.oft import OFT
from loramerge.dialects.programs.others import (
    ALL_BY_INPUTS,
    BASE_NORM,
    NO_CORE,
    NO_FACTORS,
    NO_MAGNITUDES,
    OTHER_CONSTRAINT,
)
from loramerge.files.tensors import ArrayTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["FORMULAS", "computed_elsewhere"]


def computed_elsewhere(what: str, delta: Delta, base: Array) -> Array:
    """Return the change of a weight that a program computes, in float64 and the weight's shape.

    Args:
        what: one of `dialects.programs.others`.
        base: the unmodified weight.
    """
    change: Array = FORMULAS[what](delta, base)
    return change.reshape(base.shape)


def _by_base_norm(delta: Delta, base: Array) -> Array:
    import numpy as np

    moved, magnitudes = _moved(delta, base)
    norms = np.linalg.norm(base.reshape(len(base), -1), axis=1)
    return moved * _along(magnitudes / norms, base.ndim, axis=0) - base


def _by_inputs(delta: Delta, base: Array) -> Array:
    import numpy as np

    moved, magnitudes = _moved(delta, base)
    norms = np.linalg.norm(moved.swapaxes(0, 1).reshape(moved.shape[1], -1), axis=1)
    gains = _along(magnitudes, base.ndim, axis=0) / _along(norms, base.ndim, axis=1)
    return moved * gains - base


def _without_magnitudes(delta: Delta, base: Array) -> Array:
    assert isinstance(delta, DoRA)
    return delta.inner.dense()


def _nothing(delta: Delta, base: Array) -> Array:
    import numpy as np

    return np.zeros(base.shape)


def _constrained_alike(delta: Delta, base: Array) -> Array:
    """The constraint is one norm, not one for each output; factors of the outputs are left out."""
    import numpy as np

    assert isinstance(delta, OFT)
    parts = {role: tensor for role, tensor in delta.parts.items() if role != "rescale"}
    if delta.alpha:
        parts["alpha"] = ArrayTensor(np.array(delta.alpha / len(base)))
    return replace(delta, parts=parts).dense(base)


def _moved(delta: Delta, base: Array) -> tuple[Array, Array]:
    """Return W + ΔV and the magnitudes of a DoRA."""
    assert isinstance(delta, DoRA)
    moved = base + delta.inner.dense().reshape(base.shape)
    return moved, values(delta.magnitude, "float64").reshape(-1)


def _along(numbers: Array, axes: int, axis: int) -> Array:
    shape = [1] * axes
    shape[axis] = len(numbers)
    return numbers.reshape(shape)


FORMULAS: Mapping[str, Callable[[Delta, Array], Array]] = {
    BASE_NORM: _by_base_norm,
    ALL_BY_INPUTS: _by_inputs,
    NO_MAGNITUDES: _without_magnitudes,
    NO_CORE: _nothing,
    NO_FACTORS: _constrained_alike,
    OTHER_CONSTRAINT: _constrained_alike,
}

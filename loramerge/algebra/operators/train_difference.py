"""Train-difference: add what another model learned, as far as it lies beyond the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class TrainDifference:
    """The parameters of `train-difference`."""

    gain: Annotated[float, Bounds(gt=0), Doc("Factor of the second change beside its weight.")] = (
        1.8
    )


@operator(
    space="elements",
    parameters=TrainDifference,
    inputs=(2, 2),
    alone=True,
    order=24,
    formula=(
        "ΔW = w₁ ΔW₁ + w₂ g q ΔW₂, q = |ΔW₂ − w₁ ΔW₁| / (|ΔW₂| + |ΔW₂ − w₁ ΔW₁|) in each entry, "
        "g the gain"
    ),
    source=(
        "supermerger's trainDifference, hako-mikan/sd-webui-supermerger at 0b1c491, "
        "scripts/mergers/mergers.py; A + (B − C) there is `merge A B --base C` here"
    ),
    laws=("gauge", "rank bound"),
)
def train_difference(terms: Rows, parameters: TrainDifference) -> Array:
    """Add the second change to the first, less where the first contains it already.

    To teach one fine-tune what another learned from the same base. An entry that both changed alike is
    hardly changed again; one that only the second changed comes at 0.9 of its weight.
    """
    import numpy as np

    first = second = np.zeros(terms.values[0].shape)
    weight = 0.0
    for number, one, values in zip(terms.positions, terms.weights, terms.values, strict=True):
        if number == 0:
            first = one * values
        else:
            second, weight = values, one
    beyond = np.abs(second - first)
    size = np.abs(second) + beyond
    share = np.divide(beyond, size, out=np.zeros(size.shape), where=size > 0)
    return np.asarray(first + weight * parameters.gain * share * second)


OPERATOR = train_difference

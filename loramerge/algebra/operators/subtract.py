"""Subtraction: the first input without the others."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Scalars


@operator(
    space="scalars",
    alone=True,
    inputs=(2, None),
    order=12,
    formula="ΔW = w₁ ΔW₁ − Σᵢ wᵢ ΔWᵢ over the others",
    source="negation of task vectors, arXiv 2212.04089",
    laws=(
        "gauge",
        "rotation",
        "rank bound",
        "sign",
    ),
)
def subtract(terms: Scalars, parameters: NoParameters) -> Sequence[float]:
    """Subtract every input but the first from the first.

    To remove a style from an input that contains it, or to see the difference of two inputs.
    """
    pairs = zip(terms.weights, terms.positions, strict=True)
    return [weight if position == 0 else -weight for weight, position in pairs]


OPERATOR = subtract

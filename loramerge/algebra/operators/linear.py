"""The weighted sum."""

from __future__ import annotations

from loramerge.algebra.operator import NoParameters, Operator
from loramerge.algebra.views import Scalars


def _merge(terms: Scalars, parameters: NoParameters) -> tuple[float, ...]:
    return terms.weights


OPERATOR = Operator(
    name="linear",
    space="scalars",
    merge=_merge,
    title="The weighted sum, exactly.",
    alone=True,
    of_weights=True,
    order=0,
    formula="ΔW = Σ wᵢ ΔWᵢ",
    when="The default. The result acts as all adapters loaded together, each at its weight.",
    when_models="The default. The result is the average of the models at these weights; with a base, it "
    "is the base with the changes of all, each at its weight.",
    source="Task arithmetic, arXiv 2212.04089",
    laws=(
        "sum",
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "halves",
        "linear",
        "opposites",
        "numerical rank",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
        "orthogonal",
    ),
)

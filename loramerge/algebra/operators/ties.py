"""TIES: trim, elect a sign for each entry, and average the inputs that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, elected_mean, trimmed
from loramerge.algebra.operators import operator
from loramerge.algebra.statistics import Magnitude
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Ties(Election):
    """The parameters of `ties`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.2


@operator(
    space="elements",
    parameters=Ties,
    statistics=lambda p: {"smallest": Magnitude(p.density)},
    scale="norm-match",
    order=41,
    formula=(
        "ΔW = Σ wᵢ tᵢ kᵢ / Σ kᵢ, tᵢ the largest entries of ΔWᵢ, kᵢ = 1 where wᵢ tᵢ has the sign of "
        "Σ wᵢ tᵢ"
    ),
    source="TIES-Merging, arXiv 2306.01708",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "rank bound",
        "repeatable",
        "sign",
    ),
)
def ties(terms: Rows, parameters: Ties) -> Array:
    """Keep the largest entries, elect a sign for each, and average those that have it.

    When many inputs disagree in sign. For two or three inputs the plain sum is usually as good.
    """
    return elected_mean(terms.weights, trimmed(terms, "smallest"), parameters)


OPERATOR = ties

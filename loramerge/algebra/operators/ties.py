"""TIES: trim, elect a sign for each entry, and average the adapters that have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import agreeing_mean, elected_signs, trimmed, weighted
from loramerge.algebra.operator import Magnitude, Rows
from loramerge.algebra.operators import operator
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Ties:
    """The parameters of `ties`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each adapter that is kept.")
    ] = 0.2
    divide_by: Annotated[
        Literal["count", "weights"],
        Doc(
            "Divide each entry by the number of adapters that have its sign, or by their summed "
            "weights (mergekit)."
        ),
    ] = "count"
    elect: Annotated[
        Literal["weighted", "equal"],
        Doc("Elect signs by the weighted changes, or by the changes alone (PEFT)."),
    ] = "weighted"


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
        "gauge", "homogeneous", "order", "zero", "alone", "rank bound", "repeatable",
    ),
)  # fmt: skip
def ties(terms: Rows, parameters: Ties) -> Array:
    """Keep the largest entries, elect a sign for each, and average those that have it.

    When many adapters disagree in sign. For two or three adapters the plain sum is usually as good.
    """
    kept = trimmed(terms, "smallest")
    changes = weighted(terms, kept)
    signs = elected_signs(changes if parameters.elect == "weighted" else kept)
    shares = [abs(w) for w in terms.weights] if parameters.divide_by == "weights" else None
    return agreeing_mean(changes, signs, shares)


OPERATOR = ties

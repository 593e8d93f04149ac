"""Magnitude pruning: only the largest entries of each change are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import total, trimmed, weighted
from loramerge.algebra.operators import operator
from loramerge.algebra.statistics import Magnitude
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class MagnitudePrune:
    """The parameters of `magnitude-prune`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.5


@operator(
    space="elements",
    parameters=MagnitudePrune,
    statistics=lambda p: {"smallest": Magnitude(p.density)},
    scale="norm-match",
    order=40,
    formula="ΔW = Σ wᵢ tᵢ, tᵢ the largest entries of ΔWᵢ",
    source="trimming of TIES-Merging, arXiv 2306.01708",
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
def magnitude_prune(terms: Rows, parameters: MagnitudePrune) -> Array:
    """Keep the largest entries of each change, then add.

    When inputs disturb each other by many small changes.
    """
    return total(weighted(terms, trimmed(terms, "smallest")))


OPERATOR = magnitude_prune

"""TIES on the directions that the adapters share, as KnOTS aligns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.aligned import Alignment, merge_aligned
from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, elected_mean, largest
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class TiesKnots(Alignment, Election):
    """The parameters of `ties-knots`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.2


@operator(
    space="columns",
    parameters=TiesKnots,
    scale="norm-match",
    order=43,
    formula=(
        "ΔW = U S · ties(V₁, …, Vₙ), for the adapters side by side [ΔW₁ | … | ΔWₙ] = U S [V₁ | … | Vₙ]"
    ),
    source="KnOTS, arXiv 2410.19735, with TIES-Merging, arXiv 2306.01708",
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
def ties_knots(terms: Cores, parameters: TiesKnots) -> Array:
    """Trim and elect signs on the output directions that the adapters share.

    As `ties`, for low-rank adapters: entries are compared in directions that all of them use, and no
    rank is cut.
    """

    def ties(aligned: Cores) -> Array:
        kept = [largest(one, parameters.density) for one in aligned.values]
        return elected_mean(aligned.weights, kept, parameters)

    return merge_aligned(terms, parameters, ties)


OPERATOR = ties_knots

"""DARE with TIES on the directions that the adapters share, as KnOTS aligns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.aligned import Alignment, merge_aligned
from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, dropped, elected_mean
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class DareTiesKnots(Alignment, Election):
    """The parameters of `dare-ties-knots`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.5
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of the random choice.")] = 0


@operator(
    space="columns",
    parameters=DareTiesKnots,
    scale="norm-match",
    order=53,
    formula=(
        "ΔW = U S · dare-ties(V₁, …, Vₙ), for the adapters side by side "
        "[ΔW₁ | … | ΔWₙ] = U S [V₁ | … | Vₙ]"
    ),
    source="KnOTS, arXiv 2410.19735, with DARE, arXiv 2311.03099",
    laws=(
        "gauge",
        "homogeneous",
        "zero",
        "alone",
        "rank bound",
        "repeatable",
        "sign",
        "seeds",
    ),
)
def dare_ties_knots(terms: Cores, parameters: DareTiesKnots) -> Array:
    """Drop entries of the shared directions at random, elect a sign for each, and average.

    As `dare-ties`, for low-rank adapters: no rank is cut.
    """

    def merge(aligned: Cores) -> Array:
        keep = [parameters.density] * len(aligned.values)
        return elected_mean(aligned.weights, dropped(aligned, parameters.seed, keep), parameters)

    return merge_aligned(terms, parameters, merge)


OPERATOR = dare_ties_knots

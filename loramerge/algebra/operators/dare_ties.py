"""DARE with TIES: entries dropped at random, then a sign elected for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, dropped, elected_mean
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class DareTies(Election):
    """The parameters of `dare-ties`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.5
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of the random choice.")] = 0


@operator(
    space="elements",
    parameters=DareTies,
    scale="norm-match",
    order=51,
    formula="as ties, with tᵢ = ΔWᵢ ∘ mᵢ / p, mᵢ = 1 with probability p, the density",
    source="DARE, arXiv 2311.03099, with TIES-Merging, arXiv 2306.01708",
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
def dare_ties(terms: Rows, parameters: DareTies) -> Array:
    """Drop entries at random, elect a sign for each, and average those that have it.

    As `dare`, where the fine-tunes also disagree in sign.
    """
    keep = [parameters.density] * len(terms.values)
    return elected_mean(terms.weights, dropped(terms, parameters.seed, keep), parameters)


OPERATOR = dare_ties

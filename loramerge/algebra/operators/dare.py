"""DARE: entries dropped at random, the others rescaled, then added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import dropped, total, weighted
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Dare:
    """The parameters of `dare`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.5
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of the random choice.")] = 0


@operator(
    space="elements",
    parameters=Dare,
    scale="norm-match",
    order=50,
    formula="ΔW = Σ wᵢ ΔWᵢ ∘ mᵢ / p, mᵢ = 1 with probability p, the density",
    source="DARE, arXiv 2311.03099",
    laws=(
        "gauge",
        "homogeneous",
        "zero",
        "alone",
        "rank bound",
        "repeatable",
        "sign",
        "expectation",
        "seeds",
    ),
)
def dare(terms: Rows, parameters: Dare) -> Array:
    """Drop entries at random, rescale the others, and add.

    For whole fine-tunes of language models, whose changes are redundant. It adds noise to low-rank
    adapters.
    """
    keep = [parameters.density] * len(terms.values)
    return total(weighted(terms, dropped(terms, parameters.seed, keep)))


OPERATOR = dare

"""DARE on dense matrices: drop entries at random, rescale the rest, add."""

from dataclasses import dataclass
from typing import Annotated

import loramerge as lm


@dataclass(frozen=True)
class Dare:
    density: Annotated[
        float, lm.Bounds(gt=0, le=1), lm.Doc("Probability that an entry is kept.")
    ] = 0.5
    seed: Annotated[int, lm.Bounds(ge=0), lm.Doc("Seed of the random choice.")] = 0


@lm.operator(
    name="my-dare",
    space="elements",
    parameters=Dare,
    source="arXiv 2311.03099",
    laws=("gauge", "homogeneous", "zero", "alone", "rank bound", "repeatable"),
)
def dare(terms, parameters):
    """Drop entries at random, rescale the others, and add."""
    total = 0.0
    for index, (weight, values) in enumerate(zip(terms.weights, terms.values, strict=True)):
        kept = terms.uniform(index, parameters.seed) < parameters.density
        total = total + weight * values * kept / parameters.density
    return total

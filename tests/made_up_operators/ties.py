"""TIES on dense matrices: keep the largest entries, elect a sign, average those that agree."""

from dataclasses import dataclass
from typing import Annotated

import loramerge as lm
from loramerge.algebra.operators import Magnitude


@dataclass(frozen=True)
class Ties:
    kept_share: Annotated[
        float, lm.Bounds(gt=0, le=1), lm.Doc("Share of the entries of each input that is kept.")
    ] = 0.2


@lm.operator(
    name="my-ties",
    space="elements",
    parameters=Ties,
    statistics=lambda p: {"smallest": Magnitude(p.kept_share)},
    formula="Σ wᵢ kᵢ tᵢ / Σ wᵢ kᵢ, tᵢ the kept entries, kᵢ = 1 where tᵢ has the elected sign",
    source="TIES-Merging, arXiv 2306.01708",
    laws=("gauge", "order", "zero", "alone", "rank bound", "repeatable"),
)
def ties(terms, parameters):
    """Keep the largest entries, elect a sign, and average those that agree.

    When adapters disagree in many small entries that do not matter.
    """
    import numpy as np

    smallest, weights = terms.statistics["smallest"], terms.weights
    kept = [np.where(abs(v) >= s, v, 0.0) for v, s in zip(terms.values, smallest, strict=True)]
    elected = np.sign(sum(w * v for w, v in zip(weights, kept, strict=True)))
    agree = [(np.sign(w * v) == elected) & (v != 0) for w, v in zip(weights, kept, strict=True)]
    total = sum(w * v * a for w, v, a in zip(weights, kept, agree, strict=True))
    count = sum(abs(w) * a for w, a in zip(weights, agree, strict=True))
    return total / np.where(count == 0, 1.0, count)

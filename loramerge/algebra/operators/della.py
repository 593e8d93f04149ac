"""DELLA: entries dropped at random, the small ones of each row more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, dropped, elected_mean
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Della(Election):
    """The parameters of `della`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.5
    epsilon: Annotated[
        float,
        Bounds(ge=0, lt=1),
        Doc(
            "Difference between the probabilities to keep the largest and the smallest entry of "
            "a row."
        ),
    ] = 0.15
    seed: Annotated[int, Bounds(ge=0), Doc("Seed of the random choice.")] = 0


@operator(
    space="elements",
    parameters=Della,
    scale="norm-match",
    order=52,
    formula=(
        "as dare-ties, with pᵢ from density − ε/2 to density + ε/2 by the rank of an entry's size in "
        "its row"
    ),
    source="DELLA-Merging, arXiv 2406.11617",
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
def della(terms: Rows, parameters: Della) -> Array:
    """Drop entries at random, small ones more often, elect signs, and average entries that agree.

    As `dare-ties`, and kinder to the large entries.
    """
    keep = [_chances(values, parameters) for values in terms.values]
    return elected_mean(terms.weights, dropped(terms, parameters.seed, keep), parameters)


def _chances(values: Array, parameters: Della) -> Array:
    """Return the probability to keep each entry: by the rank of its size in its row."""
    import numpy as np

    ranks = abs(values).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    places = ranks / max(1, values.shape[1] - 1) - 0.5
    return np.clip(parameters.density + parameters.epsilon * places, 1e-3, 1.0)


OPERATOR = della

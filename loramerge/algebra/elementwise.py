"""Steps that operators on elements share: trim, drop at random, elect signs, average entries that
agree.

Arrays are blocks of rows, `(rows, in·kh·kw)`, or cores, in float64. Weights act after an adapter's
own entries were trimmed or dropped, and before signs are elected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from loramerge.algebra.arrays import Array
from loramerge.algebra.statistics import Magnitude
from loramerge.algebra.views import Cores, Rows
from loramerge.parameters import Doc

__all__ = [
    "Election",
    "agreeing_mean",
    "dropped",
    "elected_mean",
    "elects_minus",
    "largest",
    "total",
    "trimmed",
    "weighted",
]


@dataclass(frozen=True)
class Election:
    """The rules by which signs are elected and entries that agree are averaged."""

    divide_by: Annotated[
        Literal["count", "weights", "none"],
        Doc(
            "Divide each entry by the number of adapters that have its sign, by their summed "
            "weights (mergekit), or by nothing (mergekit without `normalize`)."
        ),
    ] = "count"
    elect: Annotated[
        Literal["weighted", "equal"],
        Doc("Elect signs by the weighted changes, or by the changes alone (PEFT)."),
    ] = "weighted"


def trimmed(rows: Rows, statistic: str) -> list[Array]:
    """Return the entries of each term that are as large as its threshold; the others are 0."""
    import numpy as np

    found = []
    for values, threshold in zip(rows.values, rows.statistics[statistic], strict=True):
        sizes = np.abs(values)
        # the sizes are of no further use, so what is kept takes their place
        found.append(np.multiply(values, sizes >= threshold, out=sizes))
    return found


def largest(values: Array, share: float) -> Array:
    """Return a share of the entries of a matrix, the largest; the others are 0."""
    import numpy as np

    return np.where(abs(values) >= Magnitude(share).of(values), values, 0.0)


def dropped(rows: Rows | Cores, seed: int, keep: Sequence[Array | float]) -> list[Array]:
    """Return the entries of each term that a random draw keeps, each over its probability.

    So the expectation of an entry is the entry.

    Args:
        keep: probabilities in (0, 1], one for each term or for each of its entries.
    """
    return [
        values * (rows.uniform(index, seed) < chance) / chance
        for index, (values, chance) in enumerate(zip(rows.values, keep, strict=True))
    ]


def weighted(rows: Rows, values: Sequence[Array]) -> list[Array]:
    """Return the terms times their weights."""
    return [weight * one for weight, one in zip(rows.weights, values, strict=True)]


def total(terms: Sequence[Array]) -> Array:
    """Return the sum of weighted terms, in a new array."""
    result, *rest = terms
    result = result.copy() if not rest else result + rest[0]
    for one in rest[1:]:
        result += one
    return result


def elects_minus(terms: Sequence[Array]) -> Array:
    """Return for each entry whether the sum of the weighted terms is negative; 0 elects plus."""
    import numpy as np

    return np.less(total(terms), 0.0)


def agreeing_mean(
    terms: Sequence[Array], minus: Array, shares: Sequence[float] | None = None
) -> Array:
    """Return for each entry the mean of the weighted terms that have the elected sign.

    Args:
        terms: are overwritten.
        minus: where the elected sign is minus.
        shares: what each term that agrees adds to the divisor; None is 1. A divisor of 0 is 1.
    """
    import numpy as np

    result = np.zeros_like(terms[0])
    divisor = np.zeros_like(result)
    counts = np.zeros(result.shape, np.int8 if len(terms) < 128 else np.int64)
    agrees, opposed = np.empty(result.shape, bool), np.empty(result.shape, bool)
    for place, one in enumerate(terms):
        # truths take a byte each, and are combined several times as fast as numbers
        np.greater(one, 0.0, out=agrees)
        np.greater(agrees, minus, out=agrees)
        np.less(one, 0.0, out=opposed)
        opposed &= minus
        agrees |= opposed
        one *= agrees
        result += one
        if shares is None:
            counts += agrees.view(np.int8)
        else:
            divisor += np.multiply(agrees, shares[place], dtype=divisor.dtype)
    if shares is None:
        np.maximum(counts, 1, out=counts)
        np.copyto(divisor, counts)
    else:
        np.equal(divisor, 0.0, out=agrees)
        divisor += agrees
    result /= divisor
    return result


def elected_mean(weights: Sequence[float], kept: Sequence[Array], rules: Election) -> Array:
    """Elect a sign for each entry, and return the mean of the weighted terms that have it.

    Args:
        kept: the entries of each term that are left, without the weights; they are overwritten.
    """
    minus = elects_minus(kept) if rules.elect == "equal" else None
    changes = kept
    for weight, one in zip(weights, changes, strict=True):
        one *= weight
    if minus is None:
        minus = elects_minus(changes)
    if rules.divide_by == "none":
        return agreeing_mean(changes, minus, [0.0] * len(weights))
    shares = [abs(weight) for weight in weights] if rules.divide_by == "weights" else None
    return agreeing_mean(changes, minus, shares)

"""Statistics of a whole ΔW that an operator on blocks of its rows can declare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.algebra.arrays import Array

__all__ = ["Magnitude", "Norm", "Statistic", "Variance"]


@dataclass(frozen=True)
class Magnitude:
    """The threshold of the largest entries of a ΔW.

    Args:
        share: share of the entries at or above the threshold, in [0, 1]; the threshold is infinity
            where the share is less than one entry.
    """

    share: float

    def of(self, values: Array) -> float:
        """Return the threshold for a dense `(out, in·kh·kw)` matrix."""
        import numpy as np

        count = self.count(values.size)
        if count == 0:
            return float("inf")
        largest: float = np.partition(np.abs(values).reshape(-1), -count)[-count]
        return float(largest)

    def count(self, size: int) -> int:
        """Return how many of so many entries lie at or above the threshold."""
        return int(self.share * size * (1 + 1e-12))


@dataclass(frozen=True)
class Norm:
    """The Frobenius norm ‖ΔW‖ of a term, or of its entries that vary most across terms.

    Args:
        share: share of the entries that count, by largest variance, as of `Variance`; None: all.
    """

    share: float | None = None

    def of_each(self, terms: Sequence[Array]) -> tuple[float, ...]:
        """Return the norm of each of several dense `(out, in·kh·kw)` matrices of one shape."""
        if self.share is None:
            return tuple(map(self.of, terms))
        variance = Variance(self.share)
        varies = variance.of_entries(terms) >= variance.across(terms)
        return tuple(self.of(values * varies) for values in terms)

    def of(self, values: Array) -> float:
        """Return the norm of a dense `(out, in·kh·kw)` matrix."""
        return math.sqrt(float((values**2).sum()))


@dataclass(frozen=True)
class Variance:
    """The threshold of the entries that vary most across terms; one for all terms.

    Args:
        share: share of the entries at or above the threshold, in [0, 1], as of `Magnitude`.
    """

    share: float

    def across(self, terms: Sequence[Array]) -> float:
        """Return the threshold for dense `(out, in·kh·kw)` matrices of one shape."""
        return Magnitude(self.share).of(self.of_entries(terms))

    def of_entries(self, terms: Sequence[Array]) -> Array:
        """Return the variance of each entry across terms, in the shape of one of them."""
        import numpy as np

        return np.var(np.stack(terms), axis=0)


Statistic = Magnitude | Norm | Variance

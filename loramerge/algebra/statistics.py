"""Statistics of a whole ΔW that an operator on blocks of its rows can declare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loramerge.algebra.arrays import Array

__all__ = ["ColumnProducts", "Magnitude", "Norm", "Pool", "Statistic", "Variance"]


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
        sizes = np.abs(values).reshape(-1)
        sizes.partition(sizes.size - count)  # in place: another copy is as large as the module
        return float(sizes[sizes.size - count])

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


@dataclass(frozen=True)
class ColumnProducts:
    """Inner products of two terms, column by column; the same for both.

    The value has three rows: ⟨aⱼ, bⱼ⟩, ‖aⱼ‖² and ‖bⱼ‖² of each column j. A vector is one column.
    """

    def across(self, terms: Sequence[Array]) -> Array:
        """Return the products of dense `(out, in·kh·kw)` matrices, `(3, in·kh·kw)`."""
        import numpy as np

        a, b = terms
        return np.stack([np.einsum("ij,ij->j", x, y) for x, y in ((a, b), (a, a), (b, b))])


Statistic = Magnitude | Norm | Variance | ColumnProducts


@dataclass(frozen=True)
class Pool:
    """Numbers of every module that an operator needs to know together.

    Args:
        of: function of a module's statistics and of the operator's parameters; it returns numbers, in
            one axis.
        reduce: function of the numbers of all modules that have several terms; its result is
            `Rows.pooled`.
    """

    of: Callable[[Mapping[str, tuple[Any, ...]], Any], Array]
    reduce: Callable[[Array], Any]

"""Gather statistics of whole matrices from blocks of their rows, in as few passes as they need.

No matrix is ever held as a whole. A norm or a product needs one pass, the exact k-th largest entry one
or a few (`kth_largest`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from loramerge.algebra.arrays import Array
from loramerge.algebra.kth_largest import Search
from loramerge.algebra.statistics import ColumnProducts, Magnitude, Norm, Statistic, Variance

__all__ = ["Blocks", "gather", "products"]

# function that reads all blocks again: the same rows of every term, `(rows, columns)`, in float64 or
# float32
Blocks = Callable[[], Iterator[Sequence[Array]]]
# function that reads some rows of every term from all over
Sample = Callable[[], Sequence[Array]]


def gather(
    declared: Mapping[str, Statistic],
    blocks: Blocks,
    terms: int,
    size: int,
    *,
    vector: bool = False,
    sample: Sample | None = None,
) -> dict[str, tuple[Any, ...]]:
    """Return every declared statistic of each term; one across terms is the same for each.

    Args:
        terms: their number.
        size: entries of one term.
        vector: whether the only row is a vector, which statistics of columns take as one column.
        sample: spares passes where blocks differ from each other.
    """
    open_: dict[str, list[_Collector]] = {
        name: _COLLECTORS[type(one)](one, terms, size) for name, one in declared.items()
    }
    waiting = [one for several in open_.values() for one in several]
    drawing = [one for one in waiting if isinstance(one, _Threshold)]
    if drawing and sample is not None:
        drawn = sample()
        for threshold in drawing:
            threshold.expect(drawn)
    while waiting:
        for values in blocks():
            for one in waiting:
                one.take(values if not vector else [value.reshape(-1, 1) for value in values])
        waiting = [one for one in waiting if not one.is_done()]
    return {
        name: tuple(one.value for one in several) * (terms // len(several))
        for name, several in open_.items()
    }


def products(blocks: Blocks, terms: int) -> Array:
    """Return the inner products of the terms, `(terms, terms)` in float64."""
    import numpy as np

    sums: dict[tuple[int, int], list[float]] = {
        (i, j): [] for i in range(terms) for j in range(i + 1)
    }
    for values in blocks():
        flat = [one.reshape(-1) for one in values]
        for (i, j), parts in sums.items():
            parts.append(float(np.dot(flat[i], flat[j])))
    found = np.empty((terms, terms))
    for (i, j), parts in sums.items():
        found[i, j] = found[j, i] = math.fsum(parts)
    return found


class _Collector(Protocol):
    """A statistic that is being gathered."""

    value: Any

    def take(self, values: Sequence[Array]) -> None:
        """See a block of every term."""

    def is_done(self) -> bool:
        """Return whether the value is known now that a pass has ended."""


class _Threshold:
    """The threshold of a share of the largest numbers; infinity for less than one of them."""

    def __init__(
        self, share: float, size: int, numbers: Callable[[Sequence[Array]], Array]
    ) -> None:
        count = Magnitude(share).count(size)
        self._search = Search(count, size) if count else None
        self._numbers = numbers
        self.value = math.inf

    def expect(self, values: Sequence[Array]) -> None:
        """See some rows of every term, from all over, before the first block."""
        if self._search is not None:
            self._search.expect(self._numbers(values))

    def take(self, values: Sequence[Array]) -> None:
        """See a block of every term."""
        if self._search is not None:
            self._search.take(self._numbers(values))

    def is_done(self) -> bool:
        """Return whether the threshold is known."""
        if self._search is None:
            return True
        done = self._search.is_done()
        if done:
            self.value = self._search.value
        return done


class _Norm:
    """The Frobenius norm of one term, or of its entries that vary most.

    Args:
        varies: the search of their threshold, which comes first; None: all entries count.
    """

    def __init__(self, term: int, varies: _Varies | None) -> None:
        self._term, self._squares, self._varies = term, list[float](), varies
        self._seen = varies is None  # whether a pass came after the threshold was known
        self.value = 0.0

    def take(self, values: Sequence[Array]) -> None:
        """See a block of every term."""
        import numpy as np

        chosen = values[self._term]
        if self._varies is not None:
            if not self._varies.known:
                self._varies.take(self._term, values)
                return
            self._seen = True
            chosen = chosen * (self._varies.numbers(values) >= self._varies.value)
        flat = chosen.reshape(-1)
        self._squares.append(float(np.dot(flat, flat)))

    def is_done(self) -> bool:
        """Return whether the norm is known: after one pass, or one more than the threshold needs."""
        if self._varies is not None and not self._seen:
            self._varies.end_pass(self._term)
            return False
        self.value = math.sqrt(math.fsum(self._squares))
        return True


class _Columns:
    """The inner products of two terms, column by column."""

    def __init__(self, one: ColumnProducts) -> None:
        self._one = one
        self.value: Any = 0.0

    def take(self, values: Sequence[Array]) -> None:
        """See a block of every term."""
        self.value = self.value + self._one.across(values)

    def is_done(self) -> bool:
        """Return true: one pass is enough."""
        return True


def _thresholds(one: Magnitude, terms: int, size: int) -> list[_Collector]:
    import numpy as np

    return [
        _Threshold(one.share, size, lambda values, term=term: np.abs(values[term]))  # type: ignore[misc]
        for term in range(terms)
    ]


class _Varies:
    """The search of a threshold of variance that the norms of all terms share.

    The collector of the first term leads it; those of the others follow.
    """

    def __init__(self, share: float, size: int) -> None:
        self.numbers = Variance(share).of_entries
        self._threshold = _Threshold(share, size, self.numbers)
        self.known, self.value = False, math.inf

    def take(self, term: int, values: Sequence[Array]) -> None:
        """See a block of every term."""
        if term == 0:
            self._threshold.take(values)

    def end_pass(self, term: int) -> None:
        """Use what a pass brought."""
        if term == 0:
            self.known, self.value = self._threshold.is_done(), self._threshold.value


def _norms(one: Norm, terms: int, size: int) -> list[_Collector]:
    varies = None if one.share is None else _Varies(one.share, size)
    return [_Norm(term, varies) for term in range(terms)]


def _variance(one: Variance, terms: int, size: int) -> list[_Collector]:
    return [_Threshold(one.share, size, one.of_entries)]


def _columns(one: ColumnProducts, terms: int, size: int) -> list[_Collector]:
    return [_Columns(one)]


_COLLECTORS: Mapping[type[Statistic], Callable[[Any, int, int], list[_Collector]]] = {
    ColumnProducts: _columns,
    Magnitude: _thresholds,
    Norm: _norms,
    Variance: _variance,
}

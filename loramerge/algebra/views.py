"""The inputs of a merge operator: the terms of one module as each space shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loramerge.algebra.arrays import Array

__all__ = ["Cores", "Rows", "Scalars"]


@dataclass(frozen=True)
class Scalars:
    """The terms of a module as a `scalars` operator sees them.

    Args:
        module: its name.
        weights: weight of each term.
        positions: position of each term's adapter among the inputs, from 0.
        multiply: function that computes `products`.
    """

    module: str
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    multiply: Callable[[], Array] = field(repr=False)

    @cached_property
    def products(self) -> Array:
        """The inner products ⟨ΔWᵢ, ΔWⱼ⟩, `(terms, terms)` in float64, without the weights."""
        return self.multiply()


@dataclass(frozen=True)
class _Matrices:
    """Terms whose entries an operator sees."""

    module: str
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    values: tuple[Array, ...]

    def uniform(self, term: int, seed: int) -> Array:
        """Return random numbers in [0, 1), one for each entry of a term's values.

        They depend only on the seed, the module, the position of the term's adapter and the place
        of the entry, not on threads or blocks. Adapters get different numbers.

        Source: Philox of numpy, keyed by a hash.
        """
        import numpy as np

        rows, columns = self.values[term].shape
        text = f"{seed}/{self.positions[term]}/{self.module}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        steps = -(-columns // _PER_STEP)  # each row starts at a step of the generator
        stream = np.random.Philox(key=key).advance(self._row * steps)
        drawn = np.random.Generator(stream).random((rows, steps * _PER_STEP))
        return drawn[:, :columns]

    @property
    def _row(self) -> int:
        """Index of the first row."""
        return 0


_PER_STEP = 4  # numbers of 64 bits that one step of Philox gives


@dataclass(frozen=True)
class Cores(_Matrices):
    """The terms of a module as an operator on `factors` or `columns` sees them.

    Args:
        module, weights, positions: see `Scalars`.
        values: the cores Cᵢ in float64, without the weights: `(p, q)`, on `columns` `(p, in·kh·kw)`.
        factors: the cores as products of `(p, r)` and `(r, q)` at the ranks r of the terms; what
            decomposes them is faster so.
    """

    factors: tuple[tuple[Array, Array], ...] = ()


@dataclass(frozen=True)
class Rows(_Matrices):
    """A block of rows of the terms of a module, as an `elements` operator sees them.

    Args:
        module, weights, positions: see `Scalars`.
        values: the same rows of each ΔWᵢ, `(rows, columns)`, without the weights; in float64, or in
            float32 where that is exact, as for changes of float16 weights.
        first: index of the first row.
        statistics: name → value for each term, as the operator declares them; they are those of the
            whole ΔWᵢ, not of these rows.
        pooled: what the operator's `pool` makes of the numbers of all modules, None without one.
    """

    first: int = 0
    statistics: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    pooled: Any = None

    @property
    def _row(self) -> int:
        return self.first

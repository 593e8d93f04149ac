"""Combine one parameter of a merge, block by block, from the same rows of several checkpoints.

With a base, an operator gets the change of every input from it; without one, the weights of every
input. Statistics of a whole parameter, such as a norm, are gathered first, in passes over its blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from loramerge.algebra.application import array_of, coefficients_of, final_factor
from loramerge.algebra.gathering import gather, products
from loramerge.algebra.views import Rows, Scalars
from loramerge.checkpoint import Place
from loramerge.stream.ingredients import Blend
from loramerge.stream.row_reader import RowReader
from loramerge.stream.summing import is_plain
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers

__all__ = ["Combining"]

_LARGE = 1 << 19  # numbers of a parameter of which some rows are drawn first,
_DRAWN, _PER_DRAWN = 128, 1 << 15  # so many at most, one for so many numbers
Combine = Callable[[int, Sequence[Any]], Any]  # first row and rows of every term → combined rows


class Combining:
    """The combination of the inputs of one parameter.

    Attributes:
        rows, columns: of the parameter as a matrix.
        vector: whether it is one; an operator sees it as one row.
        applied: the factor of the final scale, once there is a `combination`.
        coefficients: of the terms, once there is a `combination` that is a weighted sum.
        gathered: numpy type that statistics are taken from.
    """

    def __init__(
        self, blend: Blend, buffers: Buffers, pooled: Any = None, block: int = BLOCK_ELEMENTS
    ) -> None:
        """Prepare the combination.

        Args:
            pooled: what the operator knows of all parameters together, see `Operator.pool`.
            block: entries of a block of rows.
        """
        self.blend, self.buffers, self.pooled = blend, buffers, pooled
        self.applied, self.gathered = 1.0, "float64"
        self.coefficients: Sequence[float] | None = None
        shape = blend.target.shape
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        self.vector = len(shape) == 1
        whole = self.vector or blend.target.transposed
        self.height = self.rows if whole else max(1, block // max(1, self.columns))

    # --- reading ------------------------------------------------------------------------------------

    def merged(self, kind: str) -> Callable[[int, int], Any]:
        """Return the function that gives any rows of the result, as the terms and the base make it."""
        import numpy as np

        combine, read = self.combination(), self.readers(kind)

        def rows(start: int, stop: int) -> Any:
            first, last = (0, self.rows) if self.vector else (start, stop)
            base, values = read(first, last)
            found = combine(first, values)
            found = np.array(found if base is None else found + base, kind)
            return found[start - first : stop - first]

        return rows

    def lower(self, block: int) -> None:
        """Use lower blocks of rows, where the parameter is read in blocks."""
        if self.height < self.rows:
            self.height = min(self.height, max(1, block // self.columns))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the rows of each block."""
        for start in range(0, self.rows, self.height):
            yield start, min(start + self.height, self.rows)

    def readers(self, kind: str) -> Callable[[int, int], tuple[Any, list[Any]]]:
        """Return the function that reads a block of the base, or None, and of every term's change."""
        base = None if self.blend.base is None else RowReader(self.blend.base, kind, self.buffers)
        terms = [RowReader(term.place, kind, self.buffers) for term in self.blend.terms]

        def read(start: int, stop: int) -> tuple[Any, list[Any]]:
            shape = (stop - start, self.columns)
            block = None
            if self.blend.on_base:
                block = self.buffers.get("base", kind, shape)
                if base is None:
                    block[:] = 0
                else:
                    base.fill(start, stop, block)
            values = [
                reader.fill(start, stop, self.buffers.get(f"term {i}", kind, shape))
                for i, reader in enumerate(terms)
            ]
            if block is not None:
                for one in values:
                    one -= block
            return block, values

        return read

    def all_changes(self) -> Iterator[Sequence[Any]]:
        """Yield blocks of the changes of all terms, as an operator sees them."""
        read = self.readers(self.gathered)
        for start, stop in self.spans():
            yield [self.seen(one) for one in read(start, stop)[1]]

    def some_changes(self) -> Sequence[Any]:
        """Return some rows of the changes of all terms, from all over."""
        import numpy as np

        count = max(1, min(_DRAWN, self.rows, self.rows * self.columns // _PER_DRAWN))
        rows = [place * self.rows // count for place in range(count)]

        def drawn(place: Place) -> Any:
            found = np.empty((count, self.columns), self.gathered)
            RowReader(place, self.gathered, self.buffers).draw(rows, found)
            return found

        values = [drawn(term.place) for term in self.blend.terms]
        if self.blend.base is not None:
            base = drawn(self.blend.base)
            for one in values:
                one -= base
        return values

    def seen(self, rows: Any) -> Any:
        """Return rows as an operator sees them: a vector is one row."""
        return rows.reshape(1, -1) if self.vector else rows

    # --- combining ----------------------------------------------------------------------------------

    def combination(self) -> Callable[[int, Sequence[Any]], Any]:
        """Return the function that combines a block of the terms' changes, which it may overwrite."""
        blend, method = self.blend, self.blend.method
        weights = tuple(term.weight for term in blend.terms)
        positions = tuple(term.position for term in blend.terms)
        name = blend.site.name
        if len(weights) == 1 and not method.operator.alone:
            self.applied = method.scale if isinstance(method.scale, float) else 1.0
            return self.sum_of([self.applied * weights[0]])
        if not weights:
            return self.sum_of([])
        if method.operator.space == "scalars":
            seen = Scalars(
                name, weights, positions, lambda: products(self.all_changes, len(weights))
            )
            coefficients, self.applied = coefficients_of(method, seen)
            return self.sum_of(coefficients)
        statistics = self.statistics()

        def combine(first: int, values: Sequence[Any]) -> Any:
            shown = tuple(self.seen(one) for one in values)
            rows = Rows(name, weights, positions, shown, first, statistics, self.pooled)
            return array_of(method, rows, shown[0].shape).reshape(values[0].shape)

        factor = self.applied = self.factor(combine, weights)

        def scaled(first: int, values: Sequence[Any]) -> Any:
            found = combine(first, values)
            return found if factor == 1.0 else factor * found

        return scaled

    def statistics(self) -> dict[str, tuple[Any, ...]]:
        """Gather the statistics of every term that the operator declares."""
        method = self.blend.method
        declare = method.operator.statistics
        declared = {} if declare is None else declare(method.parameters)
        terms, size = len(self.blend.terms), self.rows * self.columns
        places = [self.blend.base, *(term.place for term in self.blend.terms)]
        plain = all(place is None or is_plain(place) for place in places)
        drawn = self.some_changes if plain and size >= _LARGE and not self.vector else None
        return gather(declared, self.all_changes, terms, size, vector=self.vector, sample=drawn)

    def sum_of(self, coefficients: Sequence[float]) -> Callable[[int, Sequence[Any]], Any]:
        """Return the function that adds blocks at these coefficients, in place of the first."""
        self.coefficients = coefficients

        def combine(first: int, values: Sequence[Any]) -> Any:
            if not values:
                return 0.0
            for one, coefficient in zip(values, coefficients, strict=True):
                one *= coefficient
            total, *rest = values
            for one in rest:
                total += one
            return total

        return combine

    def factor(
        self, combine: Callable[[int, Sequence[Any]], Any], weights: Sequence[float]
    ) -> float:
        """Return the factor of the final scale; norms are gathered in a pass where it needs them."""
        import numpy as np

        method = self.blend.method
        if method.scale != "norm-match":
            return final_factor(method, 1.0, [1.0] * len(weights))
        squares: list[float] = []
        energies: list[list[float]] = [[] for _ in weights]
        read = self.readers(self.gathered)
        for start, stop in self.spans():
            values = read(start, stop)[1]
            for energy, one in zip(energies, values, strict=True):
                energy.append(float(np.dot(one.reshape(-1), one.reshape(-1))))
            found = combine(start, values).reshape(-1)
            squares.append(float(np.dot(found, found)))
        norms = [
            abs(weight) * math.sqrt(math.fsum(energy))
            for weight, energy in zip(weights, energies, strict=True)
        ]
        return final_factor(method, math.sqrt(math.fsum(squares)), norms)

"""The result of a merge operator at one module, before its rank is chosen.

There are three forms: a sum of deltas, a core between orthonormal bases, and a dense matrix. Each can
be decomposed, and each can be returned as a dense matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from loramerge.adapter import Delta
from loramerge.algebra.arrays import Array, on_device
from loramerge.algebra.bases import Basis
from loramerge.algebra.leading import decompose_leading
from loramerge.algebra.matrices import matrix, require_finite
from loramerge.algebra.svd import (
    ROUNDING,
    Decomposition,
    decompose,
    decompose_dense,
    signs_fixed,
)

_LARGE = 300  # smaller side from which on a few directions take less time than all

__all__ = ["Core", "Matrix", "Merged", "Sum"]


class Merged(Protocol):
    """A merged module.

    Attributes:
        only: the single input delta that is the result unchanged; None where something was computed.
        factored: whether it has an exact low-rank form.
        applied: the factor of the final scale, which the result contains.
    """

    @property
    def only(self) -> Delta | None: ...

    @property
    def factored(self) -> bool: ...

    @property
    def applied(self) -> float: ...

    def decompose(
        self, device: str | None, *, precise: bool, most: int | None = None
    ) -> Decomposition:
        """Return the singular value decomposition.

        Args:
            device: torch device, or None for numpy.
            precise: see `svd.decompose`.
            most: directions that can be kept, where that is known; None for all. Of a large dense
                matrix only so many are computed.
        """

    def dense(self) -> Array:
        """Return the matrix, `(out, in·kh·kw)` in float64."""


@dataclass(frozen=True)
class Sum:
    """The sum of deltas; zero if there are none."""

    deltas: Sequence[Delta]
    applied: float = 1.0
    shape: tuple[int, int] = (0, 0)  # where there is none

    @property
    def only(self) -> Delta | None:
        return self.deltas[0] if len(self.deltas) == 1 else None

    @property
    def factored(self) -> bool:
        return all(delta.rank is not None for delta in self.deltas)

    def decompose(
        self, device: str | None, *, precise: bool, most: int | None = None
    ) -> Decomposition:
        import numpy as np

        if not self.factored:
            return decompose_dense(on_device(self.dense(), device))
        factors = [delta.factors("float64") for delta in self.deltas]
        if len(factors) == 1:
            up, down = factors[0]
        elif factors:
            up = np.concatenate([up for up, _ in factors], axis=1)
            down = np.concatenate([down for _, down in factors])
        else:
            up, down = np.zeros((self.shape[0], 0)), np.zeros((0, self.shape[1]))
        require_finite(up, down)
        return decompose(on_device(up, device), on_device(down, device), precise=precise)

    def dense(self) -> Array:
        import numpy as np

        if not self.deltas:
            return np.zeros(self.shape)
        total, *rest = (matrix(delta) for delta in self.deltas)
        for one in rest:
            total = total + one
        require_finite(total)
        return total


@dataclass(frozen=True)
class Core:
    """`left @ core @ rightᵀ` between bases of p and q directions.

    Args:
        right: None for the identity.
        factored: whether all terms had a low-rank form.
        size: the sum of the norms of the inputs, to which rounding in float64 is relative.
        applied: the factor of the final scale, which the core contains.
    """

    left: Basis
    core: Array
    right: Basis | None
    factored: bool
    size: float
    applied: float = 1.0
    only: None = None

    def decompose(
        self, device: str | None, *, precise: bool, most: int | None = None
    ) -> Decomposition:
        found = decompose_dense(on_device(self.core, device))
        dtype = "float64" if precise else "float32"

        def truncate(rank: int) -> tuple[Array, Array]:
            up, down = found.truncate(rank)
            up, down = signs_fixed(self.left.times(up), self._wide(down))
            return up.astype(dtype), down.astype(dtype)

        return Decomposition(found.singular_values, truncate, ROUNDING * self.size)

    def dense(self) -> Array:
        product: Array = self.left.times(self._wide(self.core))
        return product

    def _wide(self, rows: Array) -> Array:
        """Return rows between the bases, `(…, q)`, as rows of the whole matrix, `(…, n)`."""
        return rows if self.right is None else self.right.times(rows.T).T


@dataclass(frozen=True)
class Matrix:
    """A dense matrix `(out, in·kh·kw)`; see `Core`."""

    values: Array
    factored: bool
    size: float
    applied: float = 1.0
    only: None = None

    def decompose(
        self, device: str | None, *, precise: bool, most: int | None = None
    ) -> Decomposition:
        if device is None and most is not None and min(self.values.shape) >= _LARGE:
            found = decompose_leading(self.values, most, precise=precise)
            return replace(found, noise=max(found.noise, ROUNDING * self.size))
        found = decompose_dense(on_device(self.values, device))
        return replace(found, noise=ROUNDING * self.size)

    def dense(self) -> Array:
        return self.values

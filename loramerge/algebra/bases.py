"""Orthonormal bases that several deltas share, and their cores between these.

`ΔWᵢ = P Cᵢ Qᵀ`: P spans the columns of all ups side by side, Q the rows of all downs. Both come from one
Gram matrix each while the factors are far from dependent; P and Q are then never multiplied out, and a
whole site costs one product for each side. Otherwise each delta is decomposed first, so that no factors
of any gauge lose directions.

Source: Core Space merging, NeurIPS 2025; CholeskyQR for the bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.adapter import Delta
from loramerge.algebra.arrays import Array
from loramerge.algebra.matrices import finite, matrix, require_finite
from loramerge.algebra.svd import decompose, decompose_dense

__all__ = ["Basis", "Shared", "shared"]

_APART = 1e6  # ‖R⁻¹‖² of unit columns with the Gram matrix RᵀR, up to which it is precise enough
_DEPENDENT = 1e-9  # unit vectors whose singular value is below it add no direction


@dataclass(frozen=True)
class Basis:
    """Orthonormal columns `columns @ turn`, `(m, p)`.

    Args:
        turn: `(c, p)`, None for the identity.
    """

    columns: Array
    turn: Array | None = None

    @property
    def size(self) -> int:
        """Number of directions, p."""
        width = self.columns if self.turn is None else self.turn
        return int(width.shape[1])

    def times(self, small: Array) -> Array:
        """Return the product with a small matrix `(p, k)`, `(m, k)`."""
        product: Array = self.columns @ (small if self.turn is None else self.turn @ small)
        return product


@dataclass(frozen=True)
class Shared:
    """Deltas between bases that they share.

    Args:
        left, right: P and Q; right is None where the columns are as they are.
        factors: `Cᵢ` of each delta as `(p, r)` and `(r, q)`.
    """

    left: Basis
    right: Basis | None
    factors: tuple[tuple[Array, Array], ...]

    @property
    def cores(self) -> tuple[Array, ...]:
        """The cores Cᵢ, `(p, q)` each."""
        return tuple(up @ down for up, down in self.factors)


def shared(deltas: Sequence[Delta], *, columns: bool = False) -> Shared:
    """Return bases that deltas of one shape share, and the deltas between them.

    Args:
        columns: leave the columns of the deltas as they are.

    Raises:
        NumericsError: if one holds NaN or infinity.
    """
    if all(delta.rank is not None for delta in deltas):
        factors = [delta.factors("float64") for delta in deltas]
        for up, down in factors:
            require_finite(up, down)
        found = _between(factors, columns=columns)
        if found is not None:
            return found
        factors = [_decomposed(up, down) for up, down in factors]
    else:
        factors = [_balanced(delta) for delta in deltas]
    left = Basis(_independent([up for up, _ in factors]))
    ups = [left.columns.T @ up for up, _ in factors]
    if columns:
        return Shared(left, None, _pairs(ups, [down for _, down in factors]))
    right = Basis(_independent([down.T for _, down in factors]))
    return Shared(left, right, _pairs(ups, [down @ right.columns for _, down in factors]))


def _between(factors: Sequence[tuple[Array, Array]], *, columns: bool) -> Shared | None:
    """Return deltas between bases by Gram matrices, None where these are not precise enough."""
    left = _by_gram([up for up, _ in factors])
    if left is None:
        return None
    if columns:
        return Shared(left[0], None, _pairs(left[1], [down for _, down in factors]))
    right = _by_gram([down.T for _, down in factors])
    if right is None:
        return None
    return Shared(left[0], right[0], _pairs(left[1], [one.T for one in right[1]]))


def _pairs(ups: Sequence[Array], downs: Sequence[Array]) -> tuple[tuple[Array, Array], ...]:
    return tuple(zip(ups, downs, strict=True))


def _by_gram(sides: Sequence[Array]) -> tuple[Basis, list[Array]] | None:
    """Return a basis of the columns of matrices, and these in it; None if they are near-dependent."""
    import numpy as np

    together = np.concatenate(sides, axis=1)
    if not 0 < together.shape[1] <= together.shape[0]:
        return None
    gram = together.T @ together
    norms = np.sqrt(np.diag(gram))
    if not 0 < norms.min() <= norms.max() < np.inf:
        return None
    try:
        lower = np.linalg.cholesky(gram / np.outer(norms, norms))
        turn = np.linalg.inv(lower).T
    except np.linalg.LinAlgError:
        return None
    if not float((turn**2).sum()) < _APART * len(norms):
        return None
    inside = lower.T * norms  # the triangular factor of the columns themselves
    bounds = np.cumsum([side.shape[1] for side in sides])[:-1]
    return Basis(together, turn / norms[:, None]), np.split(inside, bounds, axis=1)


def _balanced(delta: Delta) -> tuple[Array, Array]:
    """Return factors `(out, r)` and `(r, in·kh·kw)` at the numerical rank r, the same in any gauge."""
    if delta.rank is None:
        found = decompose_dense(finite(matrix(delta)))
        return found.truncate(found.rank)
    up, down = delta.factors("float64")
    require_finite(up, down)
    return _decomposed(up, down)


def _decomposed(up: Array, down: Array) -> tuple[Array, Array]:
    found = decompose(up, down, precise=True)
    return found.truncate(found.rank)


def _independent(sides: Sequence[Array]) -> Array:
    """Return an orthonormal basis of the columns of several matrices, large and small alike."""
    import numpy as np

    unit = np.concatenate([side / np.linalg.norm(side, axis=0) for side in sides], axis=1)
    left, sizes, _ = np.linalg.svd(unit, full_matrices=False)
    return left[:, sizes > _DEPENDENT]

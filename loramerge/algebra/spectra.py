"""Steps that operators on cores share: decompositions of small matrices at their numerical rank.

Singular values below 1e-9 of the largest are rounding; their directions are arbitrary and are left
out, so that no operator can make them loud.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loramerge.algebra.arrays import Array
from loramerge.algebra.views import Cores

__all__ = ["Spectrum", "polar", "spectrum", "summed", "top_directions", "weighted"]

_LEAST = 1e-9


class Spectrum(NamedTuple):
    """A matrix as `left @ diag(sizes) @ right`, at its numerical rank r.

    Args:
        left: `(p, r)` with orthonormal columns.
        sizes: the singular values, descending, `(r,)`.
        right: `(r, q)` with orthonormal rows.
    """

    left: Array
    sizes: Array
    right: Array

    def with_sizes(self, sizes: Array) -> Array:
        """Return the matrix with other singular values, `(p, q)`."""
        product: Array = (self.left * sizes) @ self.right
        return product


def spectrum(matrix: Array, most: int | None = None) -> Spectrum:
    """Decompose a matrix.

    Args:
        most: number of singular values to keep; None keeps all of the numerical rank.
    """
    import numpy as np

    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    count = int((sizes > _LEAST * sizes[:1].sum()).sum())
    count = count if most is None else min(count, most)
    return Spectrum(left[:, :count], sizes[:count], right[:count])


def polar(matrix: Array) -> Array:
    """Return the orthonormal matrix nearest to a matrix, at its numerical rank."""
    found = spectrum(matrix)
    product: Array = found.left @ found.right
    return product


def top_directions(gram: Array, count: int) -> Array:
    """Return the eigenvectors of a symmetric matrix with the largest eigenvalues, `(p, count)`."""
    import numpy as np

    _, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1][:, :count]


def weighted(cores: Cores) -> list[Array]:
    """Return the cores times their weights."""
    return [weight * core for weight, core in zip(cores.weights, cores.values, strict=True)]


def summed(terms: Sequence[Array]) -> Array:
    """Return the sum of weighted cores."""
    result, *rest = terms
    for one in rest:
        result = result + one
    return result

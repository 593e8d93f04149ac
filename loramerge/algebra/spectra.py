"""Steps that operators on cores share: decompositions of small matrices at their numerical rank.

Singular values below 1e-9 of the largest are rounding; their directions are arbitrary and are left
out, so that no operator can make them loud.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loramerge.algebra.arrays import Array
from loramerge.algebra.views import Cores

__all__ = ["Spectrum", "own_spectra", "polar", "spectrum", "summed", "top_directions", "weighted"]

_LEAST = 1e-9
_APART = 1e-6  # squared singular values whose roots are precise enough


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


def own_spectra(cores: Cores) -> list[Spectrum]:
    """Decompose the weighted core of each term; the sign of a weight goes to the left."""
    return [
        _of_product(weight, *one) for weight, one in zip(cores.weights, cores.factors, strict=True)
    ]


def _of_product(weight: float, up: Array, down: Array) -> Spectrum:
    """Decompose `weight · up @ down`, at the size of its inner rank."""
    import numpy as np

    left, over = np.linalg.qr(up)
    right, under = np.linalg.qr(down.T)
    found = spectrum(weight * over @ under.T)
    return Spectrum(left @ found.left, found.sizes, found.right @ right.T)


def polar(matrix: Array) -> Array:
    """Return the orthonormal matrix nearest to a matrix, at its numerical rank."""
    import numpy as np

    wide = matrix.shape[0] < matrix.shape[1]
    values, vectors = np.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    if len(values) and values[0] > _APART * values[-1]:  # half the time of a decomposition
        root: Array = (vectors / np.sqrt(values)) @ vectors.T
        return root @ matrix if wide else matrix @ root
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

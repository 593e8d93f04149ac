"""The leading singular directions of a dense matrix, without its whole decomposition.

Nearly all of the time goes into products of a few directions with the matrix, two for each block. Blocks
are held as rows, with which these products are fastest.

Source: block Lanczos with a random start, as in Musco and Musco, "Randomized Block Krylov Methods for
Stronger and Faster Approximate Singular Value Decomposition" (2015), algorithm 2, with every block
orthogonalised against all before it; the stopping rule is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.algebra.arrays import Array
from loramerge.algebra.svd import Decomposition, decompose_dense, signs_fixed

__all__ = ["EXCESS", "decompose_leading", "decompose_whole"]

EXCESS = 2e-3  # by which the error may exceed the optimum, relative; of what is estimated
_HALVES = 1.7  # times as much where directions that converge fast and slowly are estimated apart
_MORE = 8  # columns of a block beside those that are asked for, and at least a quarter as many
_FEWEST, _MOST = 3, 12  # blocks
_ROOM = 7  # blocks that must fit the smaller side, or the whole decomposition is as fast
_SLOWEST = 0.95  # at this ratio of two gains or above, convergence cannot be measured
_QUICKEST = 0.1  # no faster convergence is believed
_EXPLICIT = 1e-4  # share of the energy below which that of the rest is computed from the residual
_NEW = 8.0  # times the rounding of a block: shorter directions of it are that rounding
_APART = 1e-4  # of the longest: rows with shorter parts that are new are told apart by eigenvalues
_PIECE = 1 << 18  # numbers that are made float64 at a time


def decompose_leading(
    matrix: Array, rank: int | None, *, precise: bool = False, energy: float | None = None
) -> Decomposition:
    """Return the largest singular values and directions of a matrix.

    The error of the approximation is at most 1.005 times the optimum (Eckart–Young): blocks are added
    until the estimated excess is below 0.2 %. Where that needs too many of them, or the matrix is small
    beside the rank, the decomposition is that of the whole matrix. The same matrix always gives the
    same bits.

    Args:
        matrix: `(m, n)` in float32 or float64, which is also the precision of the computation.
        rank: directions to compute; None for all.
        precise: decompose the whole matrix without squaring it, for float64 output.
        energy: ‖matrix‖_F², if it is known.
    """
    short = min(matrix.shape)
    if rank is None or _ROOM * _width(rank) > short:
        return decompose_whole(matrix, precise=precise)
    turned = matrix.shape[0] > matrix.shape[1]
    energy = _energy(matrix) if energy is None else energy
    space = _Krylov.grown(matrix.T if turned else matrix, rank, energy)
    if space is None:
        return decompose_whole(matrix, precise=precise)
    return space.decomposition(rank, turned=turned)


def _width(rank: int) -> int:
    """Return the columns of a block; more of them than the rank converge in fewer blocks."""
    return rank + max(_MORE, rank // 4)


def decompose_whole(matrix: Array, *, precise: bool = False) -> Decomposition:
    """Decompose all of a matrix, through the Gram matrix of its smaller side unless `precise`.

    That is several times faster, and what it says of singular values below 1e-7 of the largest is
    rounding.
    """
    import numpy as np

    if precise:
        return decompose_dense(matrix.astype("float64", copy=False))
    turned = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if turned else matrix).astype("float64", copy=False)
    values, vectors = np.linalg.eigh(wide @ wide.T)
    sizes = np.sqrt(np.maximum(values[::-1], 0.0))
    left = vectors[:, ::-1]

    def truncate(rank: int) -> tuple[Array, Array]:
        root = np.sqrt(sizes[:rank])
        return _as_asked(left[:, :rank] * root, (left[:, :rank] / root).T @ wide, turned=turned)

    noise = 3e-8 * float(np.sqrt(len(sizes))) * float(sizes[:1].sum())
    return Decomposition(sizes, truncate, noise=noise)


def _as_asked(up: Array, down: Array, *, turned: bool) -> tuple[Array, Array]:
    return signs_fixed(*((down.T, up.T) if turned else (up, down)))


@dataclass
class _Krylov:
    """A Krylov space of `matrix @ matrixᵀ`, block by block.

    Args:
        matrix: `(m, n)` with m ≤ n.
        energy: ‖matrix‖_F².
        basis: orthonormal rows, `(d, m)` in float64.
        images: `block @ matrix` of each block of the basis, `(b, n)`.
        gram: products of the images, `(d, d)` in float64.
    """

    matrix: Array
    energy: float
    basis: Array
    images: list[Array]
    gram: Array

    @classmethod
    def grown(cls, matrix: Array, rank: int, energy: float) -> _Krylov | None:
        """Return a space that holds the leading directions, None if it would get too large."""
        import numpy as np

        (m, n), width = matrix.shape, _width(rank)
        space = cls(matrix, energy, np.zeros((0, m)), [], np.zeros((0, 0)))
        block = _random_signs((width, n), rank).astype(matrix.dtype) @ matrix.T
        seen: list[Array] = []  # energies of the leading directions after each block
        for _ in range(min(_MOST, m // (2 * width))):
            if not space.add(block):
                return space
            energies = np.linalg.eigvalsh(space.gram)[::-1][:rank]
            seen.append(np.pad(energies, (0, rank - len(energies))))
            if space.holds(seen):
                return space
            block = space.images[-1] @ matrix.T
        return None

    def add(self, block: Array) -> bool:
        """Add the directions of a block that are new; return whether there are any."""
        import numpy as np

        new = self._independent(block)
        if not len(new):
            return False
        image = new.astype(self.matrix.dtype) @ self.matrix
        self.images.append(image)
        products = _products(self.images, image)
        side = products[: len(self.basis)]
        self.gram = np.block([[self.gram, side], [side.T, products[len(self.basis) :]]])
        self.basis = np.concatenate([self.basis, new])
        return True

    def _independent(self, block: Array) -> Array:
        """Return orthonormal rows that span what a block has beside the basis, in float64."""
        import numpy as np

        rows = block.astype("float64")
        size = float(np.linalg.norm(rows, axis=1).max(initial=0.0))
        least = _NEW * float(np.finfo(block.dtype).eps) * size
        for shortest in (least, 0.0):  # once leaves what rounding brings back
            rows = rows - (rows @ self.basis.T) @ self.basis
            rows = _orthonormal(rows, shortest)
        return rows

    def holds(self, seen: Sequence[Array]) -> bool:
        """Return whether the error is near the optimum, as the last gains in energy tell.

        Gains shrink geometrically, or faster, so that `gain · q / (1 − q)` is still to be had. The first
        directions may have converged long before the last, so both halves are also estimated apart.

        Args:
            seen: energies of the leading directions after each block, descending.
        """
        import numpy as np

        rounding = float(np.finfo(self.matrix.dtype).eps) * self.energy
        captured = float(seen[-1].sum())
        tail = self.energy - captured
        if len(seen) > 1 and tail <= 4 * rounding:
            return True
        if len(seen) < _FEWEST:
            return False
        gains, before = seen[-1] - seen[-2], seen[-2] - seen[-3]
        if float(gains.sum()) <= rounding:
            return True
        for parts, allowed in ((1, EXCESS), (2, _HALVES * EXCESS)):
            pairs = zip(np.array_split(gains, parts), np.array_split(before, parts), strict=True)
            to_come = sum(_to_come(float(one.sum()), float(other.sum())) for one, other in pairs)
            if to_come > 2.0 * allowed * (tail - to_come):
                return False
        return True

    def decomposition(self, rank: int, *, turned: bool) -> Decomposition:
        """Return the leading directions of the matrix, or of its transpose where it was `turned`."""
        import numpy as np

        values, vectors = np.linalg.eigh(self.gram)
        sizes = np.sqrt(np.maximum(values[::-1][:rank], 0.0))
        mixed = vectors[:, ::-1][:, :rank].T  # rows
        dtype = self.matrix.dtype
        left = (mixed @ self.basis).astype(dtype)
        bounds = np.cumsum([len(image) for image in self.images])[:-1]
        parts = np.split(mixed.astype(dtype), bounds, axis=1)
        right = sum(part @ image for part, image in zip(parts, self.images, strict=True))
        noise = 8.0 * float(np.finfo(dtype).eps) * float(sizes[:1].sum())
        sizes = np.pad(sizes, (0, rank - len(sizes)))  # of a matrix that has no more directions

        def truncate(count: int) -> tuple[Array, Array]:
            root = np.sqrt(sizes[: min(count, len(left))]).astype(dtype)
            up, down = left[: len(root)].T * root, right[: len(root)] / root[:, None]
            return _as_asked(up, down, turned=turned)

        rest = self.energy - float((sizes**2).sum())
        if rest < _EXPLICIT * self.energy:
            rest = _energy(self.matrix - left.T @ right)
        return Decomposition(sizes, truncate, noise, max(0.0, rest))


def _random_signs(shape: tuple[int, int], seed: int) -> Array:
    """Return ±1 at random, the same for each seed, as int8."""
    import numpy as np

    random, count = np.random.Generator(np.random.Philox(key=seed)), shape[0] * shape[1]
    words = random.integers(1 << 64, size=-(-count // 64), dtype=np.uint64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count)
    return (2 * bits.view(np.int8) - 1).reshape(shape)


def _orthonormal(rows: Array, shortest: float) -> Array:
    """Return orthonormal rows that span those given, nearly, without directions that are shorter."""
    import numpy as np

    gram = rows @ rows.T
    try:
        lower = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        pass
    else:
        sizes = np.diag(lower)
        if sizes.min(initial=np.inf) > max(100.0 * shortest, _APART * sizes.max(initial=0.0)):
            return np.linalg.inv(lower) @ rows
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(shortest**2, 1e-14 * float(values[-1:].sum()))
    return (vectors[:, kept] / np.sqrt(values[kept])).T @ rows


def _to_come(gain: float, before: float) -> float:
    """Return what further blocks would gain after these two gains."""
    ratio = _SLOWEST if before <= 0.0 else min(max(gain / before, _QUICKEST), _SLOWEST)
    return max(0.0, gain) * ratio / (1.0 - ratio)


def _products(images: Sequence[Array], image: Array) -> Array:
    """Return the products of all rows of some images with those of one, in float64."""
    import numpy as np

    height = sum(len(one) for one in images)
    found = np.zeros((height, len(image)))
    step = max(1, _PIECE // height)
    for start in range(0, image.shape[1], step):
        piece = slice(start, start + step)
        rows = np.concatenate([one[:, piece] for one in images]).astype("float64", copy=False)
        found += rows @ rows[height - len(image) :].T
    return found


def _energy(matrix: Array) -> float:
    """Return ‖matrix‖_F², summed in float64."""
    import numpy as np

    rows = matrix.T if matrix.flags.f_contiguous else matrix
    step = max(1, _PIECE // max(1, rows.shape[1]))
    blocks = (rows[start : start + step] for start in range(0, len(rows), step))
    flat = (np.ascontiguousarray(block, "float64").reshape(-1) for block in blocks)
    return float(sum(float(np.dot(one, one)) for one in flat))

"""The leading singular directions of a dense matrix, without its whole decomposition.

Source: block Lanczos with a random start, as in Musco and Musco, "Randomized Block Krylov Methods for
Stronger and Faster Approximate Singular Value Decomposition" (2015), algorithm 2, with every block
orthogonalised against all before it; the stopping rule is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algebra.arrays import Array
from loramerge.algebra.svd import Decomposition, decompose_dense, signs_fixed

__all__ = ["EXCESS", "decompose_leading", "decompose_whole"]

EXCESS = 2e-3  # by which the error may exceed the optimum, relative; of what is estimated
_MORE = 8  # columns of a block beside those that are asked for
_FEWEST, _MOST = 3, 12  # blocks
_ROOM = 5  # blocks that must fit the smaller side, or the whole decomposition is as fast
_SLOWEST = 0.95  # at this ratio of two gains or above, convergence cannot be measured
_QUICKEST = 0.3  # no faster convergence is believed
_EXPLICIT = 1e-4  # share of the energy below which that of the rest is computed from the residual


def decompose_leading(matrix: Array, rank: int | None, *, precise: bool = False) -> Decomposition:
    """Return the largest singular values and directions of a matrix.

    The error of the approximation is at most 1.005 times the optimum (Eckart–Young): blocks are added
    until the estimated excess is below 0.2 %. Where that needs too many of them, or the matrix is small
    beside the rank, the decomposition is that of the whole matrix. The same matrix always gives the
    same bits.

    Args:
        matrix: `(m, n)` in float32 or float64, which is also the precision of the computation.
        rank: directions to compute; None for all.
        precise: decompose the whole matrix without squaring it, for float64 output.
    """
    short = min(matrix.shape)
    if rank is None or _ROOM * (rank + _MORE) > short:
        return decompose_whole(matrix, precise=precise)
    turned = matrix.shape[0] > matrix.shape[1]
    space = _Krylov.grown(matrix.T if turned else matrix, rank)
    if space is None:
        return decompose_whole(matrix, precise=precise)
    return space.decomposition(rank, turned=turned)


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
        bases: orthonormal columns, `(m, b)` each.
        images: `matrixᵀ @ basis`, `(n, b)` each.
        gram: products of the images, in float64.
    """

    matrix: Array
    energy: float
    bases: list[Array]
    images: list[Array]
    gram: Array

    @classmethod
    def grown(cls, matrix: Array, rank: int) -> _Krylov | None:
        """Return a space that holds the leading directions, None if it would get too large."""
        import numpy as np

        random = np.random.Generator(np.random.Philox(key=rank))
        space = cls(matrix, _energy(matrix), [], [], np.zeros((0, 0)))
        block = matrix @ random.standard_normal((matrix.shape[1], rank + _MORE), matrix.dtype)
        most = min(_MOST, matrix.shape[0] // (2 * (rank + _MORE)))
        gains, captured = [0.0, 0.0], 0.0
        for count in range(1, most + 1):
            space.add(block)
            now = float(np.linalg.eigvalsh(space.gram)[-rank:].sum())
            gains, captured = [gains[-1], now - captured], now
            if count > 1 and space.holds(captured, *gains, enough=count >= _FEWEST):
                return space
            block = matrix @ space.images[-1]
        return None

    def add(self, block: Array) -> None:
        """Add the directions of a block that are new."""
        import numpy as np

        known = np.concatenate(self.bases, axis=1) if self.bases else block[:, :0]
        for _ in range(2 if self.bases else 1):  # once leaves what rounding brings back
            block = block - known @ (known.T @ block)
            block, _ = np.linalg.qr(block)
        image = self.matrix.T @ block
        wide = image.astype("float64")
        products = [one.astype("float64").T @ wide for one in self.images]
        side = np.concatenate(products) if products else np.zeros((0, image.shape[1]))
        self.gram = np.block([[self.gram, side], [side.T, wide.T @ wide]])
        self.bases.append(block)
        self.images.append(image)

    def holds(self, captured: float, before: float, gain: float, *, enough: bool) -> bool:
        """Return whether the error is near the optimum, as the last two gains in energy tell.

        Gains shrink geometrically, or faster, so that `gain · q / (1 − q)` is still to be had.

        Args:
            captured: energy of the leading directions; before, gain: what the last two blocks added.
            enough: whether gains are many enough to tell.
        """
        import numpy as np

        rounding = float(np.finfo(self.matrix.dtype).eps) * self.energy
        tail = self.energy - captured
        if tail <= 4 * rounding or (enough and gain <= rounding):
            return True
        if not enough or not 0.0 < gain < _SLOWEST * before:
            return False
        ratio = max(gain / before, _QUICKEST)
        to_come = gain * ratio / (1.0 - ratio)
        return to_come <= 2.0 * EXCESS * (tail - to_come)

    def decomposition(self, rank: int, *, turned: bool) -> Decomposition:
        """Return the leading directions of the matrix, or of its transpose where it was `turned`."""
        import numpy as np

        values, vectors = np.linalg.eigh(self.gram)
        sizes = np.sqrt(np.maximum(values[::-1][:rank], 0.0))
        mixed = vectors[:, ::-1][:, :rank].astype(self.matrix.dtype)
        left = np.concatenate(self.bases, axis=1) @ mixed
        right = np.concatenate(self.images, axis=1) @ mixed  # times the singular values
        noise = 8.0 * float(np.finfo(self.matrix.dtype).eps) * float(sizes[:1].sum())

        def truncate(count: int) -> tuple[Array, Array]:
            root = np.sqrt(sizes[:count]).astype(left.dtype)
            return _as_asked(left[:, :count] * root, (right[:, :count] / root).T, turned=turned)

        rest = self.energy - float((sizes**2).sum())
        if rest < _EXPLICIT * self.energy:
            rest = _energy(self.matrix - left @ right.T)
        return Decomposition(sizes, truncate, noise, max(0.0, rest))


def _energy(matrix: Array) -> float:
    """Return ‖matrix‖_F², summed in float64."""
    import numpy as np

    return float(sum(float(np.dot(row, row)) for row in (r.astype("float64") for r in matrix)))

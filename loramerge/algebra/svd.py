"""The singular value decomposition of a delta, through its factors and never through ΔW.

For `ΔW = up @ down` with `up (m, R)`, `down (R, n)` the cost is `O((m + n) R² + R³)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from loramerge.algebra.arrays import Array, namespace, to_numpy
from loramerge.errors import NumericsError, Setting

__all__ = [
    "ROUNDING",
    "Decomposition",
    "decompose",
    "decompose_dense",
    "inner_product",
    "signs_fixed",
]

_GRAM_CONDITION = 1e8
_NUMERICAL_RANK = 1e-7
ROUNDING = 1e-14  # rounding in float64 where factors cancel, relative to ‖up‖‖down‖


@dataclass(frozen=True)
class Decomposition:
    """Singular values of a delta, and its truncations.

    Args:
        singular_values: descending, as a numpy float64 vector.
        truncate: function of a rank `k` that gives `up (m, k)` and `down (k, n)` of the best
            approximation of that rank, √σ on both sides, as numpy arrays.
        noise: size below which singular values are only rounding.
        rest: energy Σσ² of the directions that were not computed.
    """

    singular_values: Array
    truncate: Callable[[int], tuple[Array, Array]]
    noise: float = 0.0
    rest: float = 0.0

    @property
    def energy(self) -> float:
        """‖ΔW‖_F²."""
        return float((self.singular_values**2).sum()) + self.rest

    @property
    def rank(self) -> int:
        """Numerical rank: singular values above the noise and above 1e-7 of the largest."""
        s = self.singular_values
        return int((s > max(_NUMERICAL_RANK * s[0], self.noise)).sum()) if len(s) else 0

    def lost(self, rank: int) -> float:
        """Return ‖ΔW − ΔW_k‖_F², the tail of the energy (Eckart–Young)."""
        return float((self.singular_values[rank:] ** 2).sum()) + self.rest


def signs_fixed(up: Array, down: Array) -> tuple[Array, Array]:
    """Return factors with signs chosen so that each left vector's largest entry is positive."""
    if up.shape[1] == 0:
        return up, down
    import numpy as np

    high, low = up.max(axis=0), -up.min(axis=0)
    signs = np.where(low > high, -1.0, 1.0)
    for tied in np.flatnonzero(low == high):  # the first of the largest counts
        signs[tied] = np.sign(up[np.abs(up[:, tied]).argmax(), tied]) or 1.0
    signs = signs.astype(up.dtype)
    return up * signs, down * signs[:, None]


@contextmanager
def _converging() -> Iterator[None]:
    """Turn the failure of a LAPACK routine, numpy's or torch's, into a NumericsError."""
    try:
        yield
    except (ArithmeticError, RuntimeError, ValueError) as error:
        if not type(error).__name__.endswith("LinAlgError"):
            raise
        raise NumericsError(
            f"the singular value decomposition failed ({error})",
            hint=(
                "some values may be too large: inspect the input with ",
                Setting("deep", True),
                " to find them",
            ),
        ) from None


def decompose(up: Array, down: Array, *, precise: bool = False) -> Decomposition:
    """Decompose `up @ down`.

    The two R×R Gram matrices are used while both are conditioned below 1e8 (after balancing, three
    times faster); otherwise thin QR of both factors, which loses no digits to squaring. Where R
    exceeds the smaller side, the product itself is smaller than its factors and is decomposed.

    Args:
        up: `(m, R)` float64 with the scale folded in.
        down: `(R, n)` float64.
        precise: never use Gram matrices, whose results carry about 1e-8 of noise: for float64 output.

    Source: Eckart–Young; the R×R core is the standard compressed SVD.
    """
    xp = namespace(up)
    m, inner = up.shape
    n = down.shape[1]
    if inner == 0:
        import numpy as np

        empty = np.zeros(0)
        return Decomposition(empty, lambda _: (np.zeros((m, 0)), np.zeros((0, n))))
    with _converging():
        if inner > min(m, n):
            found = decompose_dense(up @ down)
        else:
            quick = None if precise else _by_gram(up, down)
            if quick is not None:
                return quick
            found = _by_qr(up, down)
    size = xp.linalg.vector_norm(up) * xp.linalg.vector_norm(down)
    return replace(found, noise=ROUNDING * float(size))


def _by_gram(up: Array, down: Array) -> Decomposition | None:
    """Decompose through Gram matrices, or return None where they are conditioned too badly.

    With `upᵀup = LᵤLᵤᵀ` and `down downᵀ = L_dL_dᵀ`, the core `LᵤᵀL_d = X Σ Yᵀ` has the singular
    values of the product, and `up L_d Y = U Σ`, `Xᵀ Lᵤᵀ down = Σ Vᵀ`.
    """
    xp = namespace(up)
    gram_up, gram_down = up.T @ up, down @ down.T
    size_up, size_down = math.sqrt(xp.linalg.trace(gram_up)), math.sqrt(xp.linalg.trace(gram_down))
    if not (0 < size_up < math.inf and 0 < size_down < math.inf):
        return None
    values_up, vectors_up = xp.linalg.eigh(gram_up / size_up**2)
    values_down, vectors_down = xp.linalg.eigh(gram_down / size_down**2)
    for values in (values_up, values_down):
        if not values[0] * _GRAM_CONDITION > values[-1]:
            return None
    left = vectors_up * xp.sqrt(values_up)  # Lᵤ / ‖up‖
    right = vectors_down * xp.sqrt(values_down)
    x, s, yt = xp.linalg.svd(left.T @ right, full_matrices=False)

    def truncate(k: int) -> tuple[Array, Array]:
        root = 1.0 / xp.sqrt(s[:k])
        balance = math.sqrt(size_down / size_up)  # √(‖up‖‖down‖) on both sides
        new_up = up @ (right @ yt[:k].T * root) * balance
        new_down = ((left @ x[:, :k]) * root).T @ down / balance
        return signs_fixed(to_numpy(new_up), to_numpy(new_down))

    size = size_up * size_down
    return Decomposition(to_numpy(s * size), truncate, noise=ROUNDING * size)


def _by_qr(up: Array, down: Array) -> Decomposition:
    xp = namespace(up)
    q_up, r_up = xp.linalg.qr(up)
    q_down, r_down = xp.linalg.qr(down.T)
    x, s, yt = xp.linalg.svd(r_up @ r_down.T, full_matrices=False)

    def truncate(k: int) -> tuple[Array, Array]:
        root = xp.sqrt(s[:k])
        new_up = q_up @ (x[:, :k] * root)
        new_down = (q_down @ (yt[:k].T * root)).T
        return signs_fixed(to_numpy(new_up), to_numpy(new_down))

    return Decomposition(to_numpy(s), truncate)


def decompose_dense(matrix: Array) -> Decomposition:
    """Decompose a dense `(m, n)` matrix.

    A matrix at least twice as long as wide is first reduced by QR of its long side, which is exact
    and several times faster than a direct SVD.
    """
    xp = namespace(matrix)
    m, n = matrix.shape
    if max(m, n) < 2 * min(m, n):
        x, s, yt = xp.linalg.svd(matrix, full_matrices=False)
    elif m > n:
        q, r = xp.linalg.qr(matrix)
        x, s, yt = xp.linalg.svd(r, full_matrices=False)
        x = q @ x
    else:
        q, r = xp.linalg.qr(matrix.T)
        x, s, yt = xp.linalg.svd(r.T, full_matrices=False)
        yt = yt @ q.T

    def truncate(k: int) -> tuple[Array, Array]:
        root = xp.sqrt(s[:k])
        return signs_fixed(to_numpy(x[:, :k] * root), to_numpy(yt[:k] * root[:, None]))

    return Decomposition(to_numpy(s), truncate)


def inner_product(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Return ⟨ΔW_a, ΔW_b⟩ = tr((U_bᵀ U_a)(D_a D_bᵀ)) of two deltas given by factors.

    Args:
        a, b: (up `(m, r)`, down `(r, n)`), ranks may differ.
    """
    import numpy as np

    (up_a, down_a), (up_b, down_b) = a, b
    with np.errstate(over="ignore", invalid="ignore"):
        product = float(((up_b.T @ up_a).T * (down_a @ down_b.T)).sum())
    return product if math.isfinite(product) else math.nan

"""The spaces that two deltas act in, compared by principal angles, and singular values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loramerge.adapter import Delta
from loramerge.algebra.arrays import Array
from loramerge.algebra.matrices import matrix
from loramerge.algebra.moments import Moments
from loramerge.algebra.svd import decompose, decompose_dense

__all__ = ["Overlap", "products", "spectrum_of"]


@dataclass(frozen=True)
class Overlap:
    """The alignment of the spaces of two deltas A and B; it adds up over sites.

    With singular values σᵢ of A and τⱼ of B, and the angles θᵢⱼ between their singular vectors, an
    alignment is Σ σᵢ² τⱼ² cos² θᵢⱼ.

    Args:
        aa, bb: Σ σᵢ⁴ and Σ τⱼ⁴, the alignments of each with itself.
        left, right: the alignment of the left and of the right singular vectors.
    """

    aa: float = 0.0
    bb: float = 0.0
    left: float = 0.0
    right: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.aa + other.aa,
            self.bb + other.bb,
            self.left + other.left,
            self.right + other.right,
        )

    @property
    def outputs(self) -> float | None:
        """The overlap of the output spaces, 0 to 1, or None where one of the two is zero.

        It is 1 for the same space with the same energies in it, 0 for orthogonal spaces.
        """
        return self._relative(self.left)

    @property
    def inputs(self) -> float | None:
        """The overlap of the input spaces, as of the output spaces."""
        return self._relative(self.right)

    def _relative(self, alignment: float) -> float | None:
        size = math.sqrt(self.aa * self.bb)
        return min(1.0, max(0.0, alignment / size)) if size > 0 else None


def products(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Moments, Overlap]:
    """Return the moments and the overlap of two deltas given by factors; NaN where they overflow.

    Args:
        a, b: (up `(m, r)`, down `(r, n)`) in float64, ranks may differ. Products of factors with each
            other are all that is computed: the angles need no decomposition.
    """
    import numpy as np

    (up_a, down_a), (up_b, down_b) = a, b
    with np.errstate(over="ignore", invalid="ignore"):
        ups = up_a.T @ up_a, up_b.T @ up_b, up_a.T @ up_b
        downs = down_a @ down_a.T, down_b @ down_b.T, down_a @ down_b.T
        aa, bb, ab = (float((up * down).sum()) for up, down in zip(ups, downs, strict=True))
        overlap = Overlap(
            float(((downs[0] @ ups[0] @ downs[0]) * ups[0]).sum()),
            float(((downs[1] @ ups[1] @ downs[1]) * ups[1]).sum()),
            float(((downs[0] @ ups[2] @ downs[1]) * ups[2]).sum()),
            float(((ups[0] @ downs[2] @ ups[1]) * downs[2]).sum()),
        )
    return Moments(*(one if math.isfinite(one) else math.nan for one in (aa, bb, ab))), overlap


def spectrum_of(delta: Delta, *, whole: bool = False) -> Array:
    """Return the singular values of a delta.

    Args:
        whole: of a delta without factors, too; otherwise it has one value, its norm.
    """
    import numpy as np

    if delta.rank is not None:
        found = decompose(*delta.factors("float64"))
    elif whole:
        found = decompose_dense(matrix(delta))
    else:
        norm = float(np.linalg.norm(matrix(delta)))
        return np.array([norm] if norm else [])
    return found.singular_values[: found.rank]

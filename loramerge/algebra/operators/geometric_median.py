"""Take the change whose distances to all inputs have the smallest sum."""

from __future__ import annotations

from typing import Any

from loramerge.algebra.operators import operator

_STEPS = 1000
_CONVERGED = 1e-12
_COINCIDENT = 1e-7
_TIE = 1e-7


@operator(
    space="scalars",
    formula="ΔW = s·argmin over M of Σ |wᵢ| ‖M − sign(wᵢ) ΔWᵢ‖, s = Σ |wᵢ|, in each module",
    source="geometric median, by the iteration of Weiszfeld as corrected by Vardi and Zhang (2000)",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "halves",
        "sign",
        "rotation",
        "repeatable",
    ),
)
def geometric_median(terms: Any, parameters: Any) -> Any:
    """Take the change with the smallest sum of distances to all inputs.

    When three or more inputs have learned one thing and some may be spoilt: an input far from the
    others moves the result no further than a near one does. Of two inputs, the one of larger weight is
    the result; at equal weights it is their mean.
    """
    import numpy as np

    weights = np.asarray(terms.weights, dtype=np.float64)
    signs, sizes = np.sign(weights), abs(weights)
    products = signs[:, None] * signs * np.asarray(terms.products)
    return sizes.sum() * signs * _median(sizes, products)


def _median(sizes: Any, products: Any) -> Any:
    """Find the coefficients of the geometric median, which is a convex combination of the points."""
    import numpy as np

    total = sizes.sum()
    if not total:
        return sizes
    squares = np.diagonal(products)
    nearest = _COINCIDENT * np.sqrt(squares.max())

    def step(point: Any) -> tuple[Any, float]:
        """Return where the pull leads, and the hold of a point: from 1 on, it stays."""
        distances = np.sqrt(
            np.maximum(squares - 2 * products @ point + point @ products @ point, 0.0)
        )
        apart = distances > nearest
        pulls = np.where(apart, sizes / np.where(apart, distances, 1.0), 0.0)
        if not pulls.any():
            return point, np.inf
        force = pulls - pulls.sum() * point
        strength = np.sqrt(max(force @ products @ force, 0.0))
        held = sizes[~apart].sum()
        return pulls / pulls.sum(), held / strength if strength > 0 else np.inf

    for corner, size in zip(np.eye(len(sizes)), sizes, strict=True):
        if size and step(corner)[1] > 1 + _TIE:
            return corner
    point = sizes / total
    for _ in range(_STEPS):
        target, hold = step(point)
        following = point + max(0.0, 1 - hold) * (target - point)
        if abs(following - point).max() < _CONVERGED:
            break
        point = following
    return point


OPERATOR = geometric_median

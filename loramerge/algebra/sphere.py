"""Interpolation on spheres, by inner products alone."""

from __future__ import annotations

import math

from loramerge.algebra.arrays import Array

__all__ = ["karcher_coefficients", "slerp_coefficients"]

_COLINEAR = 1e-6  # sine of the angle below which the arc is a straight line
_STEPS, _STILL = 100, 1e-12


def slerp_coefficients(
    first: Array, second: Array, product: Array, weight: float, other: float
) -> tuple[Array, Array]:
    """Return the coefficients of two vectors whose sum lies on the arc between them.

    The sign of a weight goes to its vector. The sum of the weights' sizes multiplies the result.

    Args:
        first, second, product: ⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩, numbers or arrays of one shape.
        weight, other: of a and of b, not 0.

    Source: Shoemake, SIGGRAPH 1985.
    """
    import numpy as np

    size = abs(weight) + abs(other)
    share = abs(other) / size
    norms = np.sqrt(np.maximum(first * second, 0.0))
    sign = np.sign(weight) * np.sign(other)
    cosine = np.clip(sign * product / np.where(norms > 0, norms, 1.0), -1.0, 1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    straight = (sine < _COLINEAR) | (norms == 0)
    divisor = np.where(straight, 1.0, sine)
    a = np.where(straight, 1 - share, np.sin((1 - share) * angle) / divisor)
    b = np.where(straight, share, np.sin(share * angle) / divisor)
    return size * np.sign(weight) * a, size * np.sign(other) * b


def karcher_coefficients(products: Array, weights: Array) -> Array:
    """Return the coefficients of vectors whose sum is their weighted mean on the sphere.

    The direction minimises the weighted sum of squared angles to the vectors; the norm is the
    weighted sum of their norms. The sign of a weight goes to its vector. Vectors that cancel each
    other have no mean direction, and are added.

    Args:
        products: inner products of the vectors, `(n, n)`.
        weights: `(n,)`, not all 0.

    Source: Karcher, Comm. Pure Appl. Math. 30 (1977).
    """
    import numpy as np

    norms = np.sqrt(np.maximum(np.diag(products), 0.0))
    found = np.zeros(len(weights))
    here = norms > 0
    if not here.any():
        return found
    signs, sizes = np.sign(weights[here]), np.abs(weights[here])
    scales = signs / norms[here]
    cosines = products[np.ix_(here, here)] * np.outer(scales, scales)
    shares = sizes / sizes.sum()
    length = _length(cosines, shares)
    if length < _COLINEAR:  # opposite vectors have no mean direction
        return weights
    mean = shares / length
    for _ in range(_STEPS):
        near = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(near)
        sines = np.sin(angles)
        pull = shares * np.where(sines < _COLINEAR, 1.0, angles / np.where(sines == 0, 1.0, sines))
        step = pull - (pull @ near) * mean
        length = _length(cosines, step)
        if length < _STILL:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
    found[here] = mean * scales * float(sizes @ norms[here])
    return found


def _length(products: Array, coefficients: Array) -> float:
    energy = float(coefficients @ products @ coefficients)
    return math.sqrt(max(energy, 0.0))

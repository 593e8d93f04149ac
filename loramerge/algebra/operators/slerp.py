"""Spherical interpolation of two inputs, each module as one vector."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.sphere import slerp_coefficients
from loramerge.algebra.views import Scalars


@operator(
    space="scalars",
    inputs=(2, 2),
    of_weights=True,
    order=20,
    formula=(
        "ΔW = s (sin((1−t)θ) ΔW₁ + sin(tθ) ΔW₂) / sin θ, t = w₂/s, s = w₁ + w₂, "
        "θ the angle between ΔW₁ and ΔW₂"
    ),
    source="Shoemake, SIGGRAPH 1985; as in mergekit, norms are not equalised",
    laws=(
        "gauge",
        "alone",
        "halves",
        "rotation",
        "rank bound",
        "sign",
    ),
)
def slerp(terms: Scalars, parameters: NoParameters) -> Sequence[float]:
    """Interpolate two inputs on the arc between them.

    For a point between two versions of one subject or style: a straight line between them is quieter
    in the middle. A negative weight turns its input round.
    """
    known = terms.products
    found = slerp_coefficients(known[0, 0], known[1, 1], known[0, 1], *terms.weights)
    return [float(one) for one in found]


OPERATOR = slerp

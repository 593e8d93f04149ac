"""Spherical interpolation of two inputs, row by row."""

from __future__ import annotations

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.sphere import slerp_coefficients
from loramerge.algebra.views import Rows


@operator(
    space="elements",
    inputs=(2, 2),
    of_weights=True,
    order=21,
    formula="as slerp, for each row of ΔW separately",
    source="NuSLERP of mergekit without nuslerp_flatten",
    laws=(
        "gauge",
        "alone",
        "halves",
        "rank bound",
        "sign",
    ),
)
def nuslerp(terms: Rows, parameters: NoParameters) -> Array:
    """Interpolate two inputs on the arc between them, each output channel separately.

    Where inputs agree in some channels and not in others. `slerp` takes a module as a whole.
    """
    a, b = terms.values
    squares, others, products = (
        (x * y).sum(axis=1, keepdims=True) for x, y in ((a, a), (b, b), (a, b))
    )
    left, right = slerp_coefficients(squares, others, products, *terms.weights)
    return left * a + right * b


OPERATOR = nuslerp

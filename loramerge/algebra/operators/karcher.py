"""The mean of any number of inputs on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.sphere import karcher_coefficients
from loramerge.algebra.views import Scalars


@operator(
    space="scalars",
    of_weights=True,
    order=22,
    formula="ΔW = Σ wᵢ‖ΔWᵢ‖ · the direction with the least Σ wᵢ angle²",
    source="Karcher, Comm. Pure Appl. Math. 30 (1977)",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "halves",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
    ),
)
def karcher(terms: Scalars, parameters: NoParameters) -> Sequence[float]:
    """Interpolate any number of inputs on the sphere.

    SLERP for more than two. The mean does not become quieter the more inputs there are. A negative
    weight turns its input round.
    """
    import numpy as np

    found: list[float] = karcher_coefficients(terms.products, np.array(terms.weights)).tolist()
    return found


OPERATOR = karcher

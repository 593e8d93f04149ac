"""Norm-equalised sum: every input equally loud before its weight acts."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Scalars


@operator(
    space="scalars",
    scale="norm-match",
    order=10,
    formula="ΔW = Σ wᵢ g/‖ΔWᵢ‖ ΔWᵢ, g the geometric mean of the norms",
    source="definition",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "numerical rank",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
        "duplicates",
    ),
)
def norm_equalised(terms: Scalars, parameters: NoParameters) -> Sequence[float]:
    """Bring all inputs to one norm in each module, then add.

    When one input is much louder than the others, or trained much longer.
    """
    import numpy as np

    norms = np.sqrt(np.maximum(np.diag(terms.products), 0.0))
    present = norms > 0
    mean = np.exp(np.log(norms[present]).mean()) if present.any() else 0.0
    factors = np.where(present, mean / np.where(present, norms, 1.0), 0.0)
    found: list[float] = (np.array(terms.weights) * factors).tolist()
    return found


OPERATOR = norm_equalised

"""A sum of adapters that are first brought to one norm."""

import loramerge as lm


@lm.operator(
    space="scalars",
    formula="Σ wᵢ g/‖ΔWᵢ‖ ΔWᵢ, g the geometric mean of the norms",
    source="definition",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "halves",
        "numerical rank",
        "rotation",
        "rank bound",
        "repeatable",
    ),
)
def equal_norms(terms, parameters):
    """Bring all adapters to their mean norm in each module, then add.

    When one adapter is much louder than the others.
    """
    import numpy as np

    norms = np.sqrt(np.diag(terms.products))
    present = norms > 0
    mean = np.exp(np.log(norms[present]).mean()) if present.any() else 0.0
    return np.array(terms.weights) * np.where(present, mean / np.where(present, norms, 1.0), 0.0)

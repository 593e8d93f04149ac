"""SVC: a sum in which directions that several adapters share are counted once."""

from __future__ import annotations

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import Cores, NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted


@operator(
    space="factors",
    scale="norm-match",
    order=64,
    formula=(
        "ΔW = U diag(γσ) Vᵀ for X = Σ wᵢ ΔWᵢ = U diag(σ) Vᵀ, γᵣ = n / Σ max(1, sᵣᵢ), "
        "sᵣᵢ = ⟨uᵣᵀX, uᵣᵀwᵢΔWᵢ⟩ / ‖uᵣᵀwᵢΔWᵢ‖²"
    ),
    source="Singular value calibration, arXiv 2602.05536",
    laws=(
        "gauge", "homogeneous", "order", "zero", "alone", "rotation", "rank bound", "repeatable",
    ),
)  # fmt: skip
def svc(terms: Cores, parameters: NoParameters) -> Array:
    """Add, then lower the directions that several adapters share.

    A safe choice for three adapters and more. Copies of one adapter give that adapter.
    """
    import numpy as np

    changes = weighted(terms)
    found = spectrum(summed(changes))
    whole = found.sizes[:, None] * found.right
    counted = np.zeros_like(found.sizes)
    for change in changes:
        own = found.left.T @ change
        energy = (own**2).sum(axis=1)
        present = energy > 1e-18 * found.sizes**2
        times = (whole * own).sum(axis=1) / np.where(present, energy, 1.0)
        counted += np.maximum(1.0, np.where(present, times, 1.0))
    return found.with_sizes(found.sizes * len(changes) / counted)


OPERATOR = svc

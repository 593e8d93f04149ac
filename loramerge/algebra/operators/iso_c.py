"""Iso-C: the sum with all its directions equally loud."""

from __future__ import annotations

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted
from loramerge.algebra.views import Cores


@operator(
    space="factors",
    scale="norm-match",
    order=61,
    formula="ΔW = σ̄ U Vᵀ, for Σ wᵢ ΔWᵢ = U diag(σ) Vᵀ at its numerical rank",
    source="Isotropic model merging, arXiv 2502.04959",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
    ),
)
def iso_c(terms: Cores, parameters: NoParameters) -> Array:
    """Add, then give all directions of the sum one singular value.

    When a few strong directions drown the others. It makes weak directions loud, noise included.
    """
    import numpy as np

    found = spectrum(summed(weighted(terms)))
    return found.with_sizes(
        np.full_like(found.sizes, found.sizes.mean() if len(found.sizes) else 0)
    )


OPERATOR = iso_c

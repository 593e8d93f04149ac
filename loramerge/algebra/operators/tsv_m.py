"""TSV-M: singular vectors of all adapters made orthogonal to each other."""

from __future__ import annotations

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import own_spectra, polar
from loramerge.algebra.views import Cores


@operator(
    space="factors",
    scale="norm-match",
    order=60,
    formula="ΔW = Û diag(σ) V̂ᵀ, Û and V̂ the polar factors of all singular vectors side by side",
    source="Task Singular Vectors, arXiv 2412.00081",
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
        "duplicates",
        "orthogonal",
    ),
)
def tsv_m(terms: Cores, parameters: NoParameters) -> Array:
    """Make the singular vectors of all adapters orthogonal before adding.

    When adapters share directions that a sum would count twice.
    """
    import numpy as np

    found = own_spectra(terms)
    left = polar(np.concatenate([one.left for one in found], axis=1))
    right = polar(np.concatenate([one.right for one in found]))
    result: Array = (left * np.concatenate([one.sizes for one in found])) @ right
    return result


OPERATOR = tsv_m

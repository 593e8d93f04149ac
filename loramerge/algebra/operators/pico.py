"""Pico: output directions that carry most of all adapters are lowered."""

from __future__ import annotations

from dataclasses import replace

from loramerge.algebra.arrays import Array
from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import own_spectra, summed, weighted
from loramerge.algebra.views import Cores


@operator(
    space="factors",
    scale="norm-match",
    order=65,
    formula=(
        "ΔW = Σⱼ αⱼ pⱼpⱼᵀ Σ wᵢ ΔWᵢ, αⱼ = 1/(1 + (n−1) λⱼ/Σλ), with pⱼ and λⱼ those of "
        "Σᵢ Uᵢ diag(σᵢ) Uᵢᵀ"
    ),
    source="Pico, arXiv 2604.16826, with factors in canonical form",
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
def pico(terms: Cores, parameters: NoParameters) -> Array:
    """Lower the output directions in which all adapters are strong, then add.

    When adapters pile up in a few output directions.
    """
    import numpy as np

    found = own_spectra(replace(terms, weights=(1.0,) * len(terms.weights)))
    gram = summed([(one.left * one.sizes) @ one.left.T for one in found])
    sizes, vectors = np.linalg.eigh(gram)
    sizes = np.maximum(sizes, 0.0)
    factors = 1 / (1 + (len(found) - 1) * sizes / (sizes.sum() or 1.0))
    result: Array = (vectors * factors) @ (vectors.T @ summed(weighted(terms)))
    return result


OPERATOR = pico

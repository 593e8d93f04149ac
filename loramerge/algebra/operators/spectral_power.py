"""Spectral power: the sum with a flatter or a steeper spectrum, of the same norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class SpectralPower:
    """The parameters of `spectral-power`."""

    power: Annotated[
        float,
        Bounds(ge=0, le=4),
        Doc("Power of the singular values: below 1 flattens, above 1 sharpens."),
    ] = 0.5


@operator(
    space="factors",
    parameters=SpectralPower,
    alone=True,
    order=71,
    formula="ΔW = c U diag(σᵖ) Vᵀ, for Σ wᵢ ΔWᵢ = U diag(σ) Vᵀ, c so that the norm stays",
    source="definition",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "rotation",
        "rank bound",
        "repeatable",
        "sign",
    ),
)
def spectral_power(terms: Cores, parameters: SpectralPower) -> Array:
    """Add, then flatten or sharpen the spectrum, at the same norm.

    To give weak directions of an adapter or a mix more weight, or less.
    """
    import numpy as np

    found = spectrum(summed(weighted(terms)))
    if not len(found.sizes):
        return found.with_sizes(found.sizes)
    powers = (found.sizes / found.sizes[0]) ** parameters.power
    factor = np.linalg.norm(found.sizes) / np.linalg.norm(powers)
    return found.with_sizes(factor * powers)


OPERATOR = spectral_power

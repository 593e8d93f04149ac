"""Spectral clamp: the sum without spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class SpectralClamp:
    """The parameters of `spectral-clamp`."""

    limit: Annotated[
        float, Bounds(gt=0), Doc("Largest singular value, as a multiple of the median.")
    ] = 8.0


@operator(
    space="factors",
    parameters=SpectralClamp,
    alone=True,
    order=70,
    formula="ΔW = U diag(min(σ, limit · median σ)) Vᵀ, for Σ wᵢ ΔWᵢ = U diag(σ) Vᵀ",
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
def spectral_clamp(terms: Cores, parameters: SpectralClamp) -> Array:
    """Add, then cap the singular values that stand out.

    For adapters that work alone and break when they are stacked: long trainings can leave single
    directions of huge size.
    """
    import numpy as np

    found = spectrum(summed(weighted(terms)))
    most = parameters.limit * float(np.median(found.sizes)) if len(found.sizes) else 0.0
    return found.with_sizes(np.minimum(found.sizes, most))


OPERATOR = spectral_clamp

"""RegMean without data: each adapter's own change replaces its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import summed
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class RegmeanProxy:
    """The parameters of `regmean-proxy`."""

    ridge: Annotated[float, Bounds(gt=0), Doc("Share of the plain mean, added for stability.")] = (
        0.1
    )


@operator(
    space="factors",
    parameters=RegmeanProxy,
    scale="norm-match",
    order=66,
    formula=(
        "ΔW = (Σ wᵢ ΔWᵢ Gᵢ)(Σ Gᵢ)⁻¹, Gᵢ = ΔWᵢᵀΔWᵢ/‖ΔWᵢ‖² + ρ I/q on the q input directions of all"
    ),
    source="WUDI-Merging, arXiv 2503.08099, in closed form",
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
    ),
)
def regmean_proxy(terms: Cores, parameters: RegmeanProxy) -> Array:
    """Find the change that acts on each adapter's own inputs as that adapter does.

    The inputs are not known; the directions that an adapter reads replace them.
    """
    import numpy as np

    size = terms.values[0].shape[1]
    ridge = parameters.ridge / max(1, size) * np.eye(size)
    grams = [core.T @ core / (float((core**2).sum()) or 1.0) + ridge for core in terms.values]
    asked = summed(
        [w * core @ g for w, core, g in zip(terms.weights, terms.values, grams, strict=True)]
    )
    result: Array = np.linalg.solve(summed(grams), asked.T).T
    return result


OPERATOR = regmean_proxy

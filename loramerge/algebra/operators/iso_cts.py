"""Iso-CTS: common directions of the sum, task directions beside them, all equally strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import polar, spectrum, summed, weighted
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class IsoCts:
    """The parameters of `iso-cts`."""

    common: Annotated[
        float,
        Bounds(ge=0, le=1),
        Doc(
            "Share of the directions that come from the sum; the others come from single adapters."
        ),
    ] = 0.8


@operator(
    space="factors",
    parameters=IsoCts,
    scale="norm-match",
    order=62,
    formula=(
        "ΔW = σ̄ Û V̂ᵀ of the strongest directions of Σ wᵢ ΔWᵢ, and those of each wᵢ ΔWᵢ outside of "
        "these, made orthogonal"
    ),
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
def iso_cts(terms: Cores, parameters: IsoCts) -> Array:
    """Take common directions from the sum and some from each adapter, all equally strong.

    As `iso-c`, where adapters also have directions of their own that must not be lost.
    """
    import numpy as np

    changes = weighted(terms)
    whole = spectrum(summed(changes))
    count = len(whole.sizes)
    shared = min(count, round(parameters.common * count))
    each = max(0, (count - shared) // len(changes))
    shared = count - each * len(changes)
    left, right = whole.left[:, :shared], whole.right[:shared]
    parts = [(left, whole.sizes[:shared], right)]
    for change in changes:
        own = spectrum(change - left @ (left.T @ change), each)
        parts.append((own.left, own.sizes, own.right))
    sizes = np.concatenate([one for _, one, _ in parts])
    u = polar(np.concatenate([one for one, _, _ in parts], axis=1))
    v = polar(np.concatenate([one for _, _, one in parts]))
    result: Array = (sizes.mean() if len(sizes) else 0.0) * (u @ v)
    return result


OPERATOR = iso_cts

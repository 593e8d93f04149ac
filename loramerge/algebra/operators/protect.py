"""Protect: later adapters leave alone the input directions that earlier ones read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import own_spectra, spectrum
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Protect:
    """The parameters of `protect`."""

    strength: Annotated[
        float,
        Bounds(ge=0, le=1),
        Doc("Share of the overlap that is removed: 0 is the plain sum, 1 keeps the first intact."),
    ] = 1.0
    protected: Annotated[
        int, Bounds(ge=0), Doc("Strongest directions of each adapter to protect; 0 is all.")
    ] = 0


@operator(
    space="factors",
    parameters=Protect,
    inputs=(2, None),
    order=30,
    formula="ΔW = Σ wᵢ ΔWᵢ (I − s VᵢVᵢᵀ), Vᵢ the input directions of the adapters before i",
    source="null-space projection of NP-LoRA, arXiv 2511.11051",
    laws=(
        "gauge",
        "alone",
        "rotation",
        "rank bound",
        "sign",
        "duplicates",
        "orthogonal",
    ),
)
def protect(terms: Cores, parameters: Protect) -> Array:
    """Keep the first adapter intact; each later one gives way to those before it.

    For a style or a character that must stay as it is while others are added. The order matters.
    """
    import numpy as np

    result = np.zeros_like(terms.values[0])
    taken = np.zeros((terms.values[0].shape[1], 0))
    last = len(terms.values) - 1
    own_directions = own_spectra(terms)
    for place, (weight, core) in enumerate(zip(terms.weights, terms.values, strict=True)):
        result += weight * (core - parameters.strength * (core @ taken) @ taken.T)
        if place == last:
            break
        own = own_directions[place].right[: parameters.protected or None].T
        taken = spectrum(np.concatenate([taken, own - taken @ (taken.T @ own)], axis=1)).left
    return result


OPERATOR = protect

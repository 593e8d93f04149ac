"""CART: the mean, and the strongest directions in which each adapter differs from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, weighted
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Cart:
    """The parameters of `cart`."""

    directions: Annotated[
        int, Bounds(ge=1), Doc("Number of directions of each adapter that are added to the mean.")
    ] = 4


@operator(
    space="factors",
    parameters=Cart,
    scale="norm-match",
    order=63,
    formula="ΔW = M + Σ SVDₖ(wᵢ ΔWᵢ − M), M the mean of the wᵢ ΔWᵢ",
    source="CART, arXiv 2412.12153",
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
def cart(terms: Cores, parameters: Cart) -> Array:
    """Add to the mean the strongest directions in which each adapter differs from it.

    For four adapters and more, whose noise would add up in a sum.
    """
    changes = weighted(terms)
    mean = summed(changes) / len(changes)
    own = [spectrum(change - mean, parameters.directions) for change in changes]
    return mean + summed([one.with_sizes(one.sizes) for one in own])


OPERATOR = cart

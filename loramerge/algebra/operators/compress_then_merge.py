"""Compress, then merge: all adapters in one small space that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import spectrum, summed, top_directions, weighted
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class CompressThenMerge:
    """The parameters of `compress-then-merge`."""

    shared_rank: Annotated[
        int, Bounds(ge=1), Doc("Rank of the common space that all adapters are projected to.")
    ] = 16


@operator(
    space="factors",
    parameters=CompressThenMerge,
    scale="norm-match",
    order=67,
    formula=(
        "ΔW = UUᵀ (Σ wᵢ ΔWᵢ) VVᵀ, U and V the strongest directions of Σ ΔWᵢΔWᵢᵀ/‖ΔWᵢ‖² and "
        "Σ ΔWᵢᵀΔWᵢ/‖ΔWᵢ‖²"
    ),
    source="Compress-then-merge, arXiv 2606.03723",
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
def compress_then_merge(terms: Cores, parameters: CompressThenMerge) -> Array:
    """Project all adapters to one small space in which each counts equally, then add.

    When the result must have a low rank and a quiet adapter must not be lost. A plain truncation of
    the sum keeps the strongest adapter.
    """
    rank = parameters.shared_rank
    unit = [core / ((core**2).sum() ** 0.5 or 1.0) for core in terms.values]
    left = top_directions(summed([one @ one.T for one in unit]), rank)
    right = top_directions(summed([one.T @ one for one in unit]), rank)
    total = summed(weighted(terms))
    found = spectrum(left @ (left.T @ total @ right) @ right.T)
    return found.with_sizes(found.sizes)


OPERATOR = compress_then_merge

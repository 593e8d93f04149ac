"""TIES in the basis that the adapters share, on small matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import Election, elected_mean, largest
from loramerge.algebra.operators import operator
from loramerge.algebra.spectra import summed, top_directions
from loramerge.algebra.views import Cores
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class TiesCore(Election):
    """The parameters of `ties-core`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.2


@operator(
    space="factors",
    parameters=TiesCore,
    scale="norm-match",
    order=42,
    formula="as ties, on the cores Cᵢ of ΔWᵢ = P Cᵢ Qᵀ, P and Q the singular vectors of all ΔWᵢ",
    source="Core Space merging, NeurIPS 2025, with TIES-Merging, arXiv 2306.01708",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "rank bound",
        "repeatable",
        "sign",
    ),
)
def ties_core(terms: Cores, parameters: TiesCore) -> Array:
    """Trim and elect signs in the basis that the adapters share.

    As `ties`, but nothing dense is made and no rank is cut; often better for low-rank adapters.
    """
    size, other = terms.values[0].shape
    left = top_directions(summed([core @ core.T for core in terms.values]), size)
    right = top_directions(summed([core.T @ core for core in terms.values]), other)
    kept = [largest(left.T @ core @ right, parameters.density) for core in terms.values]
    result: Array = left @ elected_mean(terms.weights, kept, parameters) @ right.T
    return result


OPERATOR = ties_core

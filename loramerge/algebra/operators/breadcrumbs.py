"""Breadcrumbs: neither the largest entries nor the small ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import total, weighted
from loramerge.algebra.operators import operator
from loramerge.algebra.statistics import Magnitude
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Breadcrumbs:
    """The parameters of `breadcrumbs`."""

    density: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries of each input that is kept.")
    ] = 0.9
    gamma: Annotated[
        float, Bounds(ge=0, lt=1), Doc("Share of the largest entries of each input to leave out.")
    ] = 0.01


@operator(
    space="elements",
    parameters=Breadcrumbs,
    statistics=lambda p: {
        "smallest": Magnitude(min(1.0, p.gamma + p.density)),
        "largest": Magnitude(p.gamma),
    },
    scale="norm-match",
    order=45,
    formula="ΔW = Σ wᵢ tᵢ, tᵢ the entries of ΔWᵢ without the share γ of the largest, then the largest",
    source="Model Breadcrumbs, arXiv 2312.06795",
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
def breadcrumbs(terms: Rows, parameters: Breadcrumbs) -> Array:
    """Leave out the largest and the smallest entries of each change, then add.

    When single outliers of inputs break a sum.
    """
    import numpy as np

    least, most = terms.statistics["smallest"], terms.statistics["largest"]
    kept = [
        np.where((abs(v) >= low) & (abs(v) < high), v, 0.0)
        for v, low, high in zip(terms.values, least, most, strict=True)
    ]
    return total(weighted(terms, kept))


OPERATOR = breadcrumbs

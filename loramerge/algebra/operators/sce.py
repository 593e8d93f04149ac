"""SCE: entries that vary most across inputs, louder inputs first, minority signs erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from loramerge.algebra.arrays import Array
from loramerge.algebra.elementwise import agreeing_mean, elects_minus, weighted
from loramerge.algebra.operators import operator
from loramerge.algebra.statistics import Norm, Variance
from loramerge.algebra.views import Rows
from loramerge.parameters import Bounds, Doc


@dataclass(frozen=True)
class Sce:
    """The parameters of `sce`."""

    select: Annotated[
        float, Bounds(gt=0, le=1), Doc("Share of the entries to keep, by largest variance.")
    ] = 1.0


@operator(
    space="elements",
    parameters=Sce,
    statistics=lambda p: {
        "norm": Norm(p.select if p.select < 1 else None),
        **({"least": Variance(p.select)} if p.select < 1 else {}),
    },
    scale="norm-match",
    order=46,
    formula=(
        "ΔW = Σ cᵢ wᵢ ΔWᵢ kᵢ / Σ cᵢ kᵢ, cᵢ = ‖wᵢ ΔWᵢ‖² / Σ ‖wⱼ ΔWⱼ‖² of the selected entries, kᵢ = 1 "
        "where the sign is that of Σ wⱼ ΔWⱼ"
    ),
    source="SCE of FuseChat, arXiv 2408.07990",
    laws=(
        "gauge",
        "homogeneous",
        "order",
        "zero",
        "alone",
        "rank bound",
        "repeatable",
        "sign",
        "duplicates",
    ),
)
def sce(terms: Rows, parameters: Sce) -> Array:
    """Select entries that vary most, weigh inputs by their energy, and erase minority signs.

    When the louder of several fine-tunes should decide.
    """
    import numpy as np

    changes = weighted(terms, terms.values)
    if parameters.select < 1:
        varies = np.var(np.stack(terms.values), axis=0) >= terms.statistics["least"][0]
        changes = [np.where(varies, one, 0.0) for one in changes]
    energies = (np.array(terms.weights) * np.array(terms.statistics["norm"])) ** 2
    shares = (energies / (energies.sum() or 1.0)).tolist()
    minus = elects_minus(changes)
    louder = [share * one for share, one in zip(shares, changes, strict=True)]
    return agreeing_mean(louder, minus, shares)


OPERATOR = sce

"""Model Stock: a mean that is as far from the base as its inputs agree."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.algebra.operator import NoParameters
from loramerge.algebra.operators import operator
from loramerge.algebra.views import Scalars


@operator(
    space="scalars",
    inputs=(2, None),
    order=25,
    formula="ΔW = t/n Σ wᵢ ΔWᵢ, t = n c/(1 + (n−1) c) in [0, 1], c the mean cosine of all pairs",
    source="Model Stock, arXiv 2403.19522",
    laws=(
        "gauge",
        "alone",
        "rotation",
        "rank bound",
        "duplicates",
    ),
)
def model_stock(terms: Scalars, parameters: NoParameters) -> Sequence[float]:
    """Average inputs of one task, and move back towards the base if they disagree.

    Only for several runs of one training with other seeds or settings. Inputs of different subjects
    have a cosine near 0, and nearly nothing is left of them.
    """
    import numpy as np

    products, count = terms.products, len(terms.weights)
    norms = np.sqrt(np.maximum(np.diag(products), 0.0))
    here = norms > 0
    scales = np.where(here, 1.0 / np.where(here, norms, 1.0), 0.0)
    cosines = products * np.outer(scales, scales)
    mean = (cosines.sum() - np.trace(cosines)) / (count * (count - 1))
    ratio = float(np.clip(count * mean / max(1 + (count - 1) * mean, 1e-12), 0.0, 1.0))
    return [ratio * weight / count for weight in terms.weights]


OPERATOR = model_stock

"""Cosine-adaptive merging: where two models are alike the first stays, where they differ the second
comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from loramerge.algebra.arrays import Array
from loramerge.algebra.operators import ColumnProducts, Pool, operator
from loramerge.algebra.views import Rows
from loramerge.parameters import Doc

_LOW, _HIGH = 1, 99  # percentiles of the likeness of all columns that stand for its whole range


@dataclass(frozen=True)
class CosineAdaptive:
    """The parameters of `cosine-adaptive`."""

    likeness: Annotated[
        Literal["columns", "both"],
        Doc(
            "Measure likeness by the directions of columns alone (supermerger's cosineA), or by the "
            "columns and the whole module (cosineB)."
        ),
    ] = "columns"


def _cosines(products: Array) -> Array:
    """Return the cosine of each column, 0 where one is zero."""
    import numpy as np

    product, first, second = products
    norms = np.sqrt(first * second)
    return np.asarray(np.where(norms > 0, product / np.where(norms > 0, norms, 1.0), 0.0))


def _whole(products: Array, parameters: CosineAdaptive) -> float:
    """Return the cosine of the whole module: of its columns at norm 1, or as they are."""
    import numpy as np

    if parameters.likeness == "columns":
        sizes = np.count_nonzero(products[1]) * np.count_nonzero(products[2])
        product = _cosines(products).sum()
    else:
        sizes, product = products[1].sum() * products[2].sum(), products[0].sum()
    return float(product / np.sqrt(sizes)) if sizes > 0 else 0.0


def _likeness(products: Array, parameters: CosineAdaptive) -> Array:
    """Return the mean of the cosine of each column and that of the whole module."""
    return (_cosines(products) + _whole(products, parameters)) / 2.0


def _numbers(statistics: Mapping[str, tuple[Any, ...]], parameters: CosineAdaptive) -> Array:
    """Return the numbers of a module whose range over all modules counts."""
    products = statistics["columns"][0]
    if parameters.likeness == "columns":
        return _cosines(products)
    here = products[1].sum() * products[2].sum() > 0
    return _likeness(products, parameters) if here else products[0][:0]


def _range(numbers: Array) -> tuple[float, float]:
    """Return the smallest and largest number between two percentiles."""
    import numpy as np

    if not numbers.size:
        return 0.0, 0.0
    kept = numbers[numbers >= np.percentile(numbers, _LOW, method="midpoint")]
    kept = kept[kept <= np.percentile(kept, _HIGH, method="midpoint")]
    return float(kept.min()), float(kept.max())


@operator(
    space="elements",
    parameters=CosineAdaptive,
    statistics=lambda _: {"columns": ColumnProducts()},
    pool=Pool(_numbers, _range),
    inputs=(2, 2),
    of_weights=True,
    order=23,
    formula=(
        "ΔW = s (k ΔW₁ + (1−k) ΔW₂) in each column, s = w₁ + w₂, k = (c − l)/(h − l) − w₂/s in [0, 1], "
        "c the mean of the cosines of the column and of the module, l to h the range of the cosines of "
        "all modules without the lowest and highest 1 %"
    ),
    source=(
        "supermerger's cosineA and cosineB, hako-mikan/sd-webui-supermerger at 0b1c491, "
        "scripts/mergers/mergers.py; after recoilme/losslessmix"
    ),
    laws=("gauge", "alone", "halves", "rank bound"),
)
def cosine_adaptive(terms: Rows, parameters: CosineAdaptive) -> Array:
    """Keep the first where both are alike, and take the second where they differ.

    For two checkpoints of one style; merge them without a base. The larger the weight of the second,
    the more columns come from it: at 1 all of them. A negative weight turns its input round.
    """
    import numpy as np

    sizes = np.abs(terms.weights)
    low, high = terms.pooled
    share = sizes[1] / sizes.sum()
    likeness = _likeness(terms.statistics["columns"][0], parameters)
    spread = high - low
    kept = (likeness - low) / spread if spread > 0 else np.ones(likeness.shape)
    kept = np.clip(kept - share, 0.0, 1.0)
    first, second = (np.sign(w) * v for w, v in zip(terms.weights, terms.values, strict=True))
    return np.asarray(sizes.sum() * (kept * first + (1.0 - kept) * second))


OPERATOR = cosine_adaptive

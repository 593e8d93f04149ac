"""Sketches: 4,096 numbers for each adapter, whose inner products are nearly those of ΔW.

Each site is multiplied by random matrices from both sides, `P ΔW Q`, and these small matrices are added
up in four groups of sites. They depend on the names and shapes of sites alone, not on files, factors or
ranks. The inner product of two sketches is that of the deltas on average; of unrelated adapters with
many sites it is off by 1/64 of their norms (one standard deviation), with one site by 1/32.

Source: Johnson and Lindenstrauss, by Kronecker products of Gaussian matrices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

from loramerge.adapter import Adapter
from loramerge.algebra.arrays import Array
from loramerge.algebra.compare import comparable, delta_product
from loramerge.algebra.gram import gram, operations
from loramerge.algebra.matrices import matrix
from loramerge.algebra.resemblance import clusters, cosines
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

__all__ = ["RELATED", "inner_products", "sketch"]

RELATED = 0.15  # cosine from which products are exact, where the others are estimated
_SEEN = 0.1  # cosine of sketches from which they are computed: few unrelated pairs have it
_SIDE, _GROUPS = 32, 4  # rows and columns of a sketch, and how many it has
_OPERATIONS = 2e11  # of all pairs, that are worth doing: about half a minute


def sketch(adapter: Adapter) -> Array:
    """Return the sketch of an adapter, `(4096,)` in float64; sites that need a base count as zero."""
    import numpy as np

    found = np.zeros((_GROUPS, _SIDE, _SIDE))
    for site, delta in adapter.deltas.items():
        if not comparable(delta):
            continue
        rows, columns = delta.flat_shape
        name = f"{site.name}/{rows}/{columns}"
        left, right = _projection(f"{name}/left", rows), _projection(f"{name}/right", columns)
        group = found[_key(name) % _GROUPS]
        if delta.rank is None:
            group += left.T @ matrix(delta) @ right
        else:
            up, down = delta.factors("float64")
            group += (left.T @ up) @ (down @ right)
    return found.reshape(-1)


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")


@lru_cache(maxsize=4096)
def _projection(name: str, size: int) -> Array:
    """Return a random matrix `(size, 32)` that depends on a name alone."""
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=_key(name)))
    return random.standard_normal((size, _SIDE), dtype=np.float32) / math.sqrt(_SIDE)


def inner_products(
    adapters: Sequence[Adapter],
    *,
    most: float = _OPERATIONS,
    threads: int | None = None,
    notify: Notify = ignore,
) -> tuple[Array, bool]:
    """Return the inner products of all pairs, `(n, n)` in float64, and whether all are exact.

    Of very many or large adapters those between unrelated ones are estimates by sketches.

    Args:
        adapters: see `gram.at_common_sites`.
        most: operations from which products are estimated.

    Raises:
        NumericsError: if one holds NaN or infinity.
    """
    import numpy as np

    if operations(adapters) <= most:
        return gram(adapters, threads=threads, notify=notify), True

    def work(adapter: Adapter) -> tuple[Array, float]:
        deltas = [delta for delta in adapter.deltas.values() if comparable(delta)]
        return sketch(adapter), math.fsum(delta_product(delta, delta) for delta in deltas)

    pairs = ordered(work, adapters, threads=threads, task="sketching", notify=notify)
    sketches, energies = zip(*pairs, strict=True)
    rows = np.stack(sketches)
    with np.errstate(invalid="ignore"):
        products = rows @ rows.T
    np.fill_diagonal(products, energies)
    near = np.abs(np.nan_to_num(cosines(products)))
    alone = np.isnan(products).any(axis=1) | np.isinf(np.diag(products))
    groups = [[int(n)] for n in np.flatnonzero(alone)] + clusters(near, _SEEN)
    for numbers in groups:  # NaN and infinity are refused there
        own = gram([adapters[n] for n in numbers], threads=threads, notify=notify)
        products[np.ix_(numbers, numbers)] = own
    return products, False

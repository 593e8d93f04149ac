"""Sketches: 4,096 numbers for each adapter, whose inner products are nearly those of ΔW.

Each site is multiplied by random matrices from both sides, `P ΔW Q`, and these small matrices are added
up in four groups of modules. They depend on the names and shapes of modules alone, not on files,
factors, ranks, or which modules a file stores fused. The inner product of two sketches is that of the
deltas on average; of unrelated adapters with many sites it is off by 1/64 of their norms (one standard
deviation), with one site by 1/32.

Source: Johnson and Lindenstrauss; Achlioptas, "Database-friendly random projections" (signs in place of
normal numbers), as Kronecker products.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from loramerge.adapter import Adapter, Delta
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
    """Return the sketch of an adapter, `(4096,)` in float64; sites that need a base count as zero.

    It is the same for a fused site and for its modules apart.
    """
    import numpy as np

    found = np.zeros((_GROUPS, _SIDE, _SIDE))
    for site, delta in adapter.deltas.items():
        if comparable(delta):
            bounds = site.bounds(delta.flat_shape[0])
            for module, rows in zip(site.modules, pairwise(bounds), strict=True):
                name = f"{module}.{site.parameter}"
                found[_key(name)[0] % _GROUPS] += _part(name, delta, slice(*rows))
    return found.reshape(-1)


def _part(name: str, delta: Delta, rows: slice) -> Array:
    """Return `P ΔW Q` of some rows of a delta, `(32, 32)`."""
    count, columns = rows.stop - rows.start, delta.flat_shape[1]
    _, left, right = _key(f"{name}/{count}/{columns}")
    if delta.rank is None:
        whole = matrix(delta)[rows] * _signs(left, count)[:, None] * _signs(right, columns)
        return _rows(left, count).T @ (whole @ _rows(right, columns))
    up, down = delta.factors("float64")
    up, down = up[rows] * _signs(left, count)[:, None], down * _signs(right, columns)
    return (_rows(left, count).T @ up) @ (down @ _rows(right, columns))


@lru_cache(maxsize=65_536)
def _key(name: str) -> tuple[int, int, int]:
    """Return three numbers that depend on a name alone."""
    raw = hashlib.sha256(name.encode()).digest()
    first, left, right = (int.from_bytes(raw[i : i + 8], "little") for i in (0, 8, 16))
    return first, left, right


# P and Q are rows of a table of random signs from a random one on, each with a random sign. Those of two
# modules are independent unless they begin at the same row, and none has to be kept.
_TABLE = 1 << 16


@lru_cache(maxsize=1)
def _table() -> Array:
    signs: Array = _signs(_TABLE, _TABLE * _SIDE).reshape(_TABLE, _SIDE) / math.sqrt(_SIDE)
    return signs


def _rows(key: int, size: int) -> Array:
    """Return rows of the table, `(size, 32)`."""
    import numpy as np

    if size > _TABLE // 2:
        return _table()[np.arange(key % _TABLE, key % _TABLE + size) % _TABLE]
    start = key % (_TABLE - size)
    return _table()[start : start + size]


@lru_cache(maxsize=8192)
def _signs(key: int, size: int) -> Array:
    """Return 1 and −1 by chance, `(size,)`; the same on all machines and with every numpy."""
    import numpy as np

    words = np.random.Philox(key=key).random_raw(-(-size // 64))  # a stream that never changes
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=size)
    return 2 * bits.astype(np.int8) - 1


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

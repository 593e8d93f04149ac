"""Explain an adapter as a sum of others with weights that are not negative.

The weights minimise ‖X − Σ wᵢ Aᵢ‖ over w ≥ 0, which takes the inner products alone. If X was cut to a
rank, no weights give it: then what the cut hides is estimated from the fitted sum, cut to the ranks of
X.

Source: Lawson and Hanson, Solving Least Squares Problems, chapter 23.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loramerge.adapter import Adapter
from loramerge.algebra.arrays import Array
from loramerge.algebra.compare import comparable, delta_product
from loramerge.algebra.gram import gram
from loramerge.algebra.mix import mix
from loramerge.algebra.overlap import spectrum_of
from loramerge.algebra.svd import decompose
from loramerge.algebra.weights import Weight
from loramerge.events import Notify, ignore

__all__ = ["Ingredients", "ingredients", "nonnegative"]

_GRADIENT = 1e-11  # of the largest product, that counts as zero
_COUNTS = 1e-6  # share of the norm of X below which an ingredient is rounding


@dataclass(frozen=True)
class Ingredients:
    """The sum of adapters that is nearest to an adapter X.

    Args:
        weights: number of an adapter → its weight, of those that take part.
        shares: number of an adapter → ‖wᵢ Aᵢ‖ / ‖X‖.
        remainder: ‖X − Σ wᵢ Aᵢ‖ / ‖X‖.
        ranks: greatest rank of X and of the sum.
        hidden: what the sum loses of its norm where it is cut to the ranks of X, relative; 0 where X
            has all of its ranks.
        remainder_cut: ‖X − cut sum‖ / ‖X‖.
    """

    weights: dict[int, float]
    shares: dict[int, float]
    remainder: float
    ranks: tuple[int, int]
    hidden: float
    remainder_cut: float


def nonnegative(products: Array, targets: Array) -> Array:
    """Return the w ≥ 0 that minimises `wᵀ H w − 2 fᵀ w`, by active sets.

    Args:
        products: H, `(n, n)`, positive semidefinite.
        targets: f, `(n,)`.
    """
    import numpy as np

    count = len(targets)
    found = np.zeros(count)
    used, spent = np.zeros(count, bool), np.zeros(count, bool)
    least = _GRADIENT * float(np.abs(targets).max(initial=0.0))
    for _ in range(3 * count + 1):
        slope = np.where(used | spent, -np.inf, targets - products @ found)
        best = int(slope.argmax()) if count else 0
        if count == 0 or slope[best] <= least:
            break
        used[best] = True
        while True:
            places = np.flatnonzero(used)
            aim = np.zeros(count)
            chosen = products[np.ix_(places, places)]
            aim[places] = np.linalg.lstsq(chosen, targets[places], rcond=1e-12)[0]
            if (aim[places] > 0).all():
                found = aim
                break
            back = places[aim[places] <= 0]
            step = (found[back] / (found[back] - aim[back] + 1e-300)).min()
            found = found + step * (aim - found)
            used &= found > 1e-14 * max(1.0, float(found.max()))
            found[~used] = 0.0
            if not used.any():
                break
        spent[best] = not used[best]  # it helps by rounding alone
    return found


def ingredients(
    mystery: Adapter,
    library: Sequence[Adapter],
    *,
    products: Array | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Ingredients:
    """Fit an adapter by others.

    Args:
        mystery, library: at common sites, see `gram.at_common_sites`.
        products: inner products of the mystery and the library, in this order, if they are known.
    """
    known = products
    if known is None:
        known = gram([mystery, *library], threads=threads, notify=notify)
    whole = float(known[0, 0])
    weights = nonnegative(known[1:, 1:], known[0, 1:])
    norms = weights * known.diagonal()[1:] ** 0.5 / math.sqrt(whole) if whole > 0 else weights * 0
    chosen = [number for number, share in enumerate(norms) if share > _COUNTS]
    fitted = weights[chosen]
    rest = whole - 2 * fitted @ known[0, 1:][chosen]
    rest += fitted @ known[1:, 1:][chosen][:, chosen] @ fitted
    relative = math.sqrt(max(0.0, float(rest)) / whole) if whole > 0 else 0.0
    inputs = [(library[n], Weight(float(weights[n]))) for n in chosen]
    ranks, hidden, cut = _cut(mystery, inputs, whole, relative, threads)
    return Ingredients(
        {n: float(weights[n]) for n in chosen},
        {n: float(norms[n]) for n in chosen},
        relative,
        ranks,
        hidden,
        cut,
    )


def _cut(
    mystery: Adapter,
    inputs: Sequence[tuple[Adapter, Weight]],
    whole: float,
    relative: float,
    threads: int | None,
) -> tuple[tuple[int, int], float, float]:
    """Return the ranks of X and of the sum, what cutting the sum loses, and what then remains."""
    if not inputs:
        return (max(mystery.ranks(), default=0), 0), 0.0, relative
    total = mix(inputs, embeddings="none", threads=threads)[0]
    largest = [0, 0]
    energy = lost = apart = 0.0
    for site in {**mystery.deltas, **total.deltas}:
        one, other = mystery.deltas.get(site), total.deltas.get(site)
        if any(delta is not None and not comparable(delta) for delta in (one, other)):
            continue
        size = 0.0 if one is None else delta_product(one, one)
        if other is None:
            apart += size
            continue
        if other.rank is None or (one is not None and one.rank is None):
            own = delta_product(other, other)
            energy += own
            apart += size + own - (0.0 if one is None else 2 * delta_product(one, other))
            continue
        found = decompose(*other.factors("float64"))
        rank = 0 if one is None else len(spectrum_of(one))
        largest = [max(largest[0], rank), max(largest[1], found.rank)]
        energy += found.energy
        lost += found.lost(rank)
        apart += size + found.energy - found.lost(rank)
        if one is not None and rank:
            up, down = found.truncate(rank)
            mine = one.factors("float64")
            apart -= 2 * float(((mine[0].T @ up) * (mine[1] @ down.T)).sum())
    hidden = math.sqrt(lost / energy) if energy > 0 else 0.0
    after = math.sqrt(max(0.0, apart) / whole) if whole > 0 else 0.0
    return (largest[0], largest[1]), hidden, after

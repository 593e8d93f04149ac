"""Copies and clusters among many adapters, by their inner products and singular values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from loramerge.adapter import Adapter, Site
from loramerge.algebra.arrays import Array
from loramerge.algebra.compare import comparable
from loramerge.algebra.kinship import Kinship, kinship, may_be_cut
from loramerge.algebra.moments import Moments
from loramerge.algebra.overlap import spectrum_of

__all__ = ["Copy", "clusters", "copies", "cosines"]


@dataclass(frozen=True)
class Copy:
    """Two adapters, by their numbers, of which one holds what the other does.

    Args:
        refactored: whether they are the same change in other factors.
    """

    a: int
    b: int
    kinship: Kinship
    refactored: bool = False


def cosines(products: Array) -> Array:
    """Return the cosines of all pairs; NaN where an adapter changes nothing."""
    import numpy as np

    norms = np.sqrt(np.maximum(np.diag(products), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.clip(products / np.outer(norms, norms), -1.0, 1.0)
        return found


def copies(adapters: Sequence[Adapter], products: Array) -> Iterator[Copy]:
    """Yield the pairs of copies.

    Args:
        adapters: at common sites, see `gram.at_common_sites`.
        products: see `gram.gram`.
    """
    spectra: dict[int, dict[Site, Array]] = {}

    def values(number: int) -> dict[Site, Array]:
        if number not in spectra:
            deltas = adapters[number].deltas.items()
            spectra[number] = {s: spectrum_of(d) for s, d in deltas if comparable(d)}
        return spectra[number]

    for a, b in combinations(range(len(adapters)), 2):
        total = Moments(*(float(products[pair]) for pair in ((a, a), (b, b), (a, b))))
        found = kinship(total)
        if not found.is_copy and may_be_cut(total):
            found = kinship(total, _pairs(values(a), values(b)))
        if found.is_copy:
            refactored = found.kind == "same" and not _same_factors(adapters[a], adapters[b])
            yield Copy(a, b, found, refactored)


def _pairs(a: dict[Site, Array], b: dict[Site, Array]) -> Iterator[tuple[Array, Array]]:
    import numpy as np

    none = np.zeros(0)
    return ((a.get(site, none), b.get(site, none)) for site in {**a, **b})


def _same_factors(a: Adapter, b: Adapter) -> bool:
    """Return whether the factors of two adapters with one ΔW are the same at every site."""
    import numpy as np

    def same(site: Site) -> bool:
        one, other = a.deltas[site], b.deltas[site]
        if one.rank is None or one.rank != other.rank:
            return one.rank == other.rank
        pairs = zip(one.factors("float64"), other.factors("float64"), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    return all(same(site) for site in a.deltas if site in b.deltas)


def clusters(cosine: Array, least: float) -> list[list[int]]:
    """Return groups of two or more adapters, each joined to another of it by a cosine of `least`."""
    import numpy as np

    group = list(range(len(cosine)))

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for a, b in zip(*np.nonzero(np.triu(cosine >= least, 1)), strict=True):
        first, second = sorted((root(int(a)), root(int(b))))
        group[second] = first
    found: dict[int, list[int]] = {}
    for number in range(len(cosine)):
        found.setdefault(root(number), []).append(number)
    return [those for those in found.values() if len(those) > 1]

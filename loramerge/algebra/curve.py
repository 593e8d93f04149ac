"""The error of an adapter at many ranks and sizes, from one set of spectra, without writing anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loramerge.adapter import Adapter, Site
from loramerge.algebra.arrays import to_numpy
from loramerge.algebra.budget import Cut, SiteSpectrum, choose_ranks
from loramerge.algebra.combine import SUM, Work, can_cut, quiet
from loramerge.algebra.outcome import SizeModel
from loramerge.algebra.ranks import RankRule, relative
from loramerge.algebra.terms import Term, naming, require_base_free
from loramerge.algebra.weights import Weight
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

__all__ = ["CurvePoint", "Loss", "at_rank", "at_size", "ladder", "spectra_of", "worst"]

_STEPS = (1, 1.5)  # of a power of two: 1, 2, 3, 4, 6, 8, 12, …


@dataclass(frozen=True)
class CurvePoint:
    """An adapter at one rank, or at the best ranks for a size.

    Args:
        rank: the same for every module; None where the size chose them.
        size: bytes of the file.
        relative_error: over all modules that can be cut.
        ranks: rank → number of modules.
        max_size: the bytes that the size of the file was limited to; None where the rank decides.
        sites: site → its rank.
    """

    rank: int | None
    size: int
    relative_error: float
    ranks: Mapping[int, int]
    max_size: int | None = None
    sites: Mapping[Site, int] = field(default_factory=dict)

    @property
    def norm_kept(self) -> float:
        """√(1 − error²)."""
        return math.sqrt(max(0.0, 1.0 - self.relative_error**2))


@dataclass(frozen=True)
class Loss:
    """The loss of one module at a rank, relative to its own norm."""

    site: Site
    rank: int
    relative_error: float


def spectra_of(
    adapter: Adapter,
    *,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[SiteSpectrum]:
    """Return the spectrum of every site that can be cut, at its numerical rank.

    Raises:
        AdapterError: naming a module whose change depends on the base.
        NumericsError: if an input is not finite.
    """
    require_base_free([(adapter.require_sound(), Weight())], RankRule(rank=1))
    work = Work(SUM, device, precise or adapter.dtype == "F64")

    def one(site: Site) -> SiteSpectrum:
        with naming(site), quiet():
            delta = adapter.deltas[site]
            found = work.decompose(work.merge(site, [Term(delta)]))
            sizes = to_numpy(found.singular_values)[: found.rank]
            return SiteSpectrum(
                site, delta.flat_shape, [float(size) ** 2 for size in sizes], found.energy
            )

    sites = [site for site, delta in adapter.deltas.items() if can_cut([Term(delta)])]
    return list(ordered(one, sites, threads=threads, task="spectra", notify=notify))


def ladder(spectra: Iterable[SiteSpectrum]) -> list[int]:
    """Return ranks to show: 1, 2, 3, 4, 6, 8, 12, … up to the largest of any site."""
    most = max((len(one.energies) for one in spectra), default=0)
    steps = (int(step * 2**power) for power in range(64) for step in _STEPS if step * 2**power >= 1)
    found = []
    for rank in dict.fromkeys(steps):
        if rank >= most:
            break
        found.append(rank)
    return [*found, most] if most else []


def at_rank(spectra: Sequence[SiteSpectrum], rank: int, size: Callable[[int], int]) -> CurvePoint:
    """Return the point of one rank for every site.

    Args:
        size: function of the rank that gives the bytes of the file.
    """
    ranks = {one.site: min(rank, len(one.energies)) for one in spectra}
    return CurvePoint(rank, size(rank), _error(spectra, ranks), _counted(ranks), sites=ranks)


def at_size(spectra: Sequence[SiteSpectrum], most: int, sizes: SizeModel) -> CurvePoint:
    """Return the point of the best ranks for a file of at most some bytes.

    Raises:
        UsageError: if even a file without any direction is larger.
    """
    ranks = choose_ranks(spectra, Cut(RankRule(max_size=most), sizes))
    return CurvePoint(
        None, sizes.exact(ranks), _error(spectra, ranks), _counted(ranks), most, ranks
    )


def worst(spectra: Sequence[SiteSpectrum], ranks: Mapping[Site, int], most: int) -> list[Loss]:
    """Return the modules that lose most of themselves, the worst first; none that loses nothing."""
    losses = (Loss(s.site, ranks[s.site], _error([s], ranks)) for s in spectra)
    found = sorted(losses, key=lambda one: -one.relative_error)
    return [one for one in found[:most] if one.relative_error > 0]


def _counted(ranks: Mapping[Site, int]) -> dict[int, int]:
    return dict(sorted(Counter(ranks.values()).items()))


def _error(spectra: Sequence[SiteSpectrum], ranks: Mapping[Site, int]) -> float:
    lost = (math.fsum(one.energies[ranks[one.site] :]) for one in spectra)
    return relative(math.fsum(lost), math.fsum(one.energy for one in spectra))

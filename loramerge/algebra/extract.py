"""Turn the difference of two weights into a delta of low rank, without what rounding put into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from loramerge.adapter import LowRank, Site
from loramerge.algebra.arrays import Array
from loramerge.algebra.budget import SiteSpectrum
from loramerge.algebra.leading import decompose_leading
from loramerge.algebra.noise import NoiseSums, noise_floor, noise_level
from loramerge.algebra.outcome import SiteOutcome
from loramerge.algebra.ranks import RankRule, site_rank
from loramerge.algebra.svd import Decomposition

__all__ = ["Change", "Extracted", "Extractor", "Status"]

_START = 64  # directions that are computed first where a share of the energy says how many are kept

Status = Literal["unchanged", "rounding", "changed"]


class Change(NamedTuple):
    """The difference of the weights of one site.

    Args:
        matrix: tuned − base, `(out, in·kh·kw)`; None where every weight is equal.
        noise: variances of the rounding that may be in it.
        rounding: whether rounding to the types of the two checkpoints explains all of it.
        types: the types that it was rounded to, where they differ.
        energy: ‖matrix‖_F², None if it is not known.
    """

    matrix: Array | None
    noise: NoiseSums
    rounding: bool
    types: frozenset[str] = frozenset()
    energy: float | None = None


class Extracted(NamedTuple):
    """The result at one site.

    Args:
        result: None where there is nothing but rounding, or nothing at all.
    """

    status: Status
    types: frozenset[str]
    result: SiteOutcome | None = None


@dataclass(frozen=True)
class Extractor:
    """Cuts differences by a rule.

    Args:
        keep_rounding: keep directions also where they may be rounding.
        precise: compute in float64 throughout, for float64 output.
        most: function of a site's flat shape that gives the rank which no budget exceeds, or None.
    """

    rule: RankRule
    keep_rounding: bool = False
    precise: bool = False
    most: Callable[[tuple[int, int]], int | None] = lambda _: None

    def extract(
        self, site: Site, shape: tuple[int, ...], change: Change, chosen: int | None = None
    ) -> Extracted:
        """Return the delta of a site.

        Args:
            shape: of the weight.
            chosen: the rank, where it was chosen over all sites together.
        """
        if change.matrix is None:
            return Extracted("unchanged", change.types)
        found = self._decomposed(change, math.prod(shape[2:]), chosen)
        if found is None:
            return Extracted("rounding", change.types)
        rank = min(chosen, found.rank) if chosen is not None else self._rank(found, change, shape)
        lost = found.lost(rank)
        if rank == 0:
            return Extracted(
                "changed", change.types, SiteOutcome(site, None, None, found.energy, lost)
            )
        dtype = "float64" if self.precise else "float32"
        up, down = (one.astype(dtype) for one in found.truncate(rank))
        delta = LowRank.from_arrays(up, down, shape)
        return Extracted(
            "changed", change.types, SiteOutcome(site, delta, None, found.energy, lost)
        )

    def spectrum(
        self, site: Site, shape: tuple[int, ...], change: Change
    ) -> tuple[Status, frozenset[str], SiteSpectrum | None]:
        """Return what a site offers where ranks are chosen over all sites together."""
        if change.matrix is None:
            return "unchanged", change.types, None
        found = self._decomposed(change, math.prod(shape[2:]), None)
        if found is None:
            return "rounding", change.types, None
        rank = self._rank(found, change, shape)
        energies = [float(size) ** 2 for size in found.singular_values[:rank]]
        seen = SiteSpectrum(site, change.matrix.shape, energies, found.energy)
        return "changed", change.types, seen

    def _rank(self, found: Decomposition, change: Change, shape: tuple[int, ...]) -> int:
        rest = (
            _signal_beyond(found, change.noise) if found.rank == len(found.singular_values) else 0
        )
        kernel = math.prod(shape[2:])
        return site_rank(found.singular_values, self.rule, kernel, found.rank, rest)

    def _decomposed(self, change: Change, kernel: int, chosen: int | None) -> Decomposition | None:
        """Return the directions that may be kept, None if rounding explains all of them."""
        matrix = change.matrix
        assert matrix is not None
        if change.rounding and not self.keep_rounding:
            return None
        short = min(matrix.shape)
        wanted, grows = self._wanted(matrix.shape, kernel)
        if chosen is not None:
            wanted, grows = max(1, chosen), False
        while True:
            found = decompose_leading(matrix, wanted, precise=self.precise, energy=change.energy)
            if not self.keep_rounding:
                floor = noise_floor(found, change.noise)
                found = replace(found, noise=max(found.noise, floor))
            if wanted is None or not grows or len(found.singular_values) == short:
                break
            if self._enough(found, change.noise):
                break
            wanted = 2 * wanted
        return found if found.rank else None

    def _wanted(self, shape: tuple[int, int], kernel: int) -> tuple[int | None, bool]:
        """Return how many directions are computed first, and whether they may turn out too few."""
        rule, cap = self.rule, self.rule.cap(kernel)
        if rule.cumulative is not None:
            return None, False  # the sum of all singular values is needed
        most = self.most(shape)
        known = [number for number in (cap, most) if number is not None]
        if known:
            return max(1, min(known)), False
        if rule.energy is not None or rule.ratio is not None:
            return _START, True
        return None, False

    def _enough(self, found: Decomposition, noise: NoiseSums) -> bool:
        """Return whether the criteria can be met with the directions that were computed."""
        sizes = found.singular_values
        if found.rank < len(sizes):
            return True
        if self.rule.ratio is not None and sizes[-1] * self.rule.ratio <= sizes[0]:
            return True
        share = self.rule.energy
        kept = float((sizes**2).sum())
        return share is not None and kept >= share * (kept + _signal_beyond(found, noise))


def _signal_beyond(found: Decomposition, noise: NoiseSums) -> float:
    """Return the energy of directions that were not computed, without that of rounding."""
    if found.rest <= 0.0:
        return 0.0
    shape = (len(noise.rows), len(noise.columns))
    shown = noise_level(found, shape)
    return found.rest * (1.0 - min(1.0, noise.energy / shown)) if shown > 0.0 else found.rest

"""Choose the ranks of all sites together, by the size of the file or by the error of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loramerge.adapter import Site
from loramerge.algebra.allocation import Candidate, ranks_for_error, ranks_for_size
from loramerge.algebra.outcome import SizeModel
from loramerge.algebra.ranks import RankRule

__all__ = ["Cut", "SiteSpectrum", "choose_ranks"]


@dataclass(frozen=True)
class Cut:
    """A rule, and what it needs to choose ranks.

    Args:
        sizes: needed where the rule has `max_size`.
        norms: site → norm of the base's weight, to which singular values are relative; None compares
            them as they are.
    """

    rule: RankRule
    sizes: SizeModel | None = None
    norms: Mapping[Site, float] | None = None

    @property
    def over_all(self) -> bool:
        """True if ranks are chosen over all sites together."""
        return self.rule.max_size is not None or self.rule.error_chooses

    def norm_of(self, site: Site) -> float | None:
        """Return the norm that a site's singular values are relative to, None if there is none."""
        return None if self.norms is None else self.norms[site]


class SiteSpectrum(NamedTuple):
    """The directions of a site, by their energies.

    Args:
        flat_shape: `(out, in·kh·kw)`.
        energies: σ² of the directions that may be kept, descending.
        energy: ‖ΔW‖_F².
    """

    site: Site
    flat_shape: tuple[int, int]
    energies: Sequence[float]
    energy: float

    def relative_to(self, norm: float | None) -> SiteSpectrum:
        """Return the same with all sizes divided by a norm; None changes nothing."""
        if norm is None:
            return self
        part = 1.0 / norm**2
        return self._replace(
            energies=[part * energy for energy in self.energies], energy=part * self.energy
        )


def choose_ranks(
    spectra: Sequence[SiteSpectrum], cut: Cut, *, lost: float = 0.0
) -> dict[Site, int]:
    """Return the rank of each site that `max_size` or `max_error` chooses.

    Args:
        lost: energy that no site can keep, for `max_error`.

    Raises:
        UsageError: if even a file without any direction is larger than `max_size`.
    """
    rule, sizes = cut.rule, cut.sizes
    itemsize = sizes.itemsize if sizes else 2
    spectra = [one.relative_to(cut.norm_of(one.site)) for one in spectra]
    candidates = [
        Candidate(
            one.energies, itemsize * sum(one.flat_shape), sizes.first(one.site) if sizes else 0
        )
        for one in spectra
    ]
    sites = [one.site for one in spectra]
    if rule.max_size is not None:
        assert sizes is not None
        exact = sizes.exact

        def exact_size(ranks: Sequence[int]) -> int:
            return exact(dict(zip(sites, ranks, strict=True)))

        ranks = ranks_for_size(candidates, rule.max_size, exact_size)
    else:
        assert rule.max_error is not None
        energy = math.fsum(one.energy for one in spectra)
        ranks = ranks_for_error(candidates, energy, rule.max_error, lost)
    return dict(zip(sites, ranks, strict=True))

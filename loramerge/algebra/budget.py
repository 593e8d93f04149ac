"""Choose the ranks of all sites together, by the size of the file or by the error of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from loramerge.adapter import Site
from loramerge.algebra.outcome import SizeModel
from loramerge.algebra.ranks import Candidate, RankRule, ranks_for_error, ranks_for_size

__all__ = ["SiteSpectrum", "choose_ranks"]


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


def choose_ranks(
    spectra: Sequence[SiteSpectrum],
    rule: RankRule,
    sizes: SizeModel | None = None,
    *,
    lost: float = 0.0,
) -> dict[Site, int]:
    """Return the rank of each site that `max_size` or `max_error` chooses.

    Args:
        sizes: needed where the rule has `max_size`.
        lost: energy that no site can keep, for `max_error`.

    Raises:
        UsageError: if even a file without any direction is larger than `max_size`.
    """
    itemsize = sizes.itemsize if sizes else 2
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

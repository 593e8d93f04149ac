"""Cut a combination so that the adapter in it which loses most loses as little as possible.

A truncated SVD keeps the directions of the most energy, which are those of the loudest adapter; a quiet
one may be lost altogether. Here each site keeps a subspace of its outputs, `R = P P^T ΔW` with k
orthonormal columns P (or of its inputs, `R = ΔW P P^T`, where the adapters share more of them). Adapter i
then loses the part `L_i = Σ ‖D_i - P P^T D_i‖² / Σ ‖D_i‖²` of its own change D_i, over all sites, and the
largest of these is minimised. For weights λ of the adapters, the best P of a site are the leading
eigenvectors of `Σ λ_i D_i D_i^T / ‖D_i‖²`, and ranks are allocated over sites by their eigenvalues.
Water-filling finds λ: the weight of whoever loses most is raised until all lose alike, or until one that
loses less has no weight left.

Source: the minimax criterion is that of Tantipongpipat et al., "Multi-Criteria Dimensionality Reduction
with Applications to Fairness" (2019), there for groups of data; the update of λ and the allocation over
sites are our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from loramerge.adapter import LowRank, Site
from loramerge.algebra.arrays import Array, to_numpy
from loramerge.algebra.budget import Cut, SiteSpectrum, choose_ranks
from loramerge.algebra.combine import (
    SUM,
    Work,
    at_site,
    can_cut,
    note_changed_kinds,
    quiet,
    require_same_shape,
)
from loramerge.algebra.merged import balanced, basis
from loramerge.algebra.operator import Method
from loramerge.algebra.outcome import Combined, SiteOutcome, SizeModel
from loramerge.algebra.svd import decompose
from loramerge.algebra.terms import Term, naming
from loramerge.algebra.workers import ordered
from loramerge.events import Notify, ignore

__all__ = ["combine_fairly", "losses_of"]

_ROUNDS = 40  # of water-filling at most; a few are enough for two adapters
_CLOSE = 1.01  # ratio of the largest loss and the least possible one at which it stops
_LEAST = 1e-6  # weight of an adapter that loses nothing
_REST = 1e-9  # weight of the combination itself, for directions that are of no ingredient
_STRANGE = 1e-2  # share of a norm from which on a direction is more than the rounding of a file


class _Shares(NamedTuple):
    """The ingredients of a site, seen from an orthonormal basis of their outputs, or inputs.

    Args:
        basis: `(p, R)` with orthonormal columns, p being out, or in·kh·kw where `turned`.
        parts: position of an ingredient → `(R, r)`, with the Gram matrix of its part in this basis.
        whole: the same of the combination.
        turned: whether the basis is one of inputs.
        rank: numerical rank of the combination.
        energy: ‖ΔW‖_F² of it.
    """

    basis: Array
    parts: Mapping[int, Array]
    whole: Array
    turned: bool
    rank: int
    energy: float


def combine_fairly(
    terms: Mapping[Site, Sequence[Term]],
    ingredients: Mapping[Site, Sequence[Term]],
    cuts: Sequence[Cut],
    *,
    method: Method = SUM,
    device: str | None = None,
    precise: bool = False,
    threads: int | None = None,
    task: str = "",
    notify: Notify = ignore,
) -> list[Combined]:
    """Combine the terms of every site, and return the fair result of each cut.

    Sites of a rank that need not be lowered stay as they are. `Combined.ingredients` are √L_i.

    Args:
        terms, method: what is cut; see `combine`.
        ingredients: site → the adapters to be fair to, as terms; sites without any are cut by their
            own energy, at the least weight.
        cuts: rules with `rank`, `conv_rank` or `max_size`.
    """
    work = Work(method, device, precise)
    sites = [site for site, found in terms.items() if can_cut(found)]

    def seen(site: Site) -> _Shares:
        with naming(site), quiet():
            return _shares(site, terms[site], ingredients.get(site, ()), work)

    shares = dict(
        zip(
            sites,
            ordered(seen, sites, threads=threads, task="ingredients", notify=notify),
            strict=True,
        )
    )
    shapes = {site: terms[site][0].delta.shape for site in sites}
    kept = {site: replaced._replace(basis=None) for site, replaced in shares.items()}
    balances = [_Balance(kept, shapes, cut).settled() for cut in cuts]

    def one(site: Site) -> list[SiteOutcome]:
        with naming(site), quiet():
            if site not in kept:
                return at_site(site, terms[site], work, cuts, [None for _ in cuts])
            own = _shares(site, terms[site], ingredients.get(site, ()), work)
            return [_cut(site, terms[site], own, balance, cut, work) for balance, cut in zip(balances, cuts, strict=True)]

    found = ordered(one, terms, threads=threads, task=task, notify=notify)
    columns = list(zip(*found, strict=True)) or [() for _ in cuts]
    combined = [
        Combined(tuple(outcomes), balance.errors)
        for outcomes, balance in zip(columns, balances, strict=True)
    ]
    note_changed_kinds(terms, combined[0], notify)
    return combined

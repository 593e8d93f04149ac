"""Balance what adapters lose in a fair cut: the directions of each site, and the ranks over all sites.

Adapter i with the change D_i loses `L_i = Σ ‖D_i − P Pᵀ D_i‖² / Σ ‖D_i‖²` over all sites, where a site
keeps k directions, the columns of P; the largest L_i is minimised. For weights λ of the adapters, the
best P of a site are the leading eigenvectors of `Σ λ_i D_i D_iᵀ / ‖D_i‖²`, and ranks are allocated over
sites by its eigenvalues. Water-filling finds λ: the weight of those that lose much is raised until all
lose alike, or until one that loses less has no weight left. `Σ λ_i L_i` is then the least possible
value of the largest loss for ranks that are given, and nearly so for a size.

Source: see `fair.py`; the update of λ and the allocation over sites are our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from loramerge.adapter import Site
from loramerge.algebra.arrays import Array
from loramerge.algebra.budget import Cut, SiteSpectrum, choose_ranks
from loramerge.algebra.outcome import SizeModel

__all__ = ["Balance", "Shares", "balance_of"]

_ROUNDS = 40  # of water-filling at most; a few are enough for two adapters
_CLOSE = 1.01  # ratio of the largest loss and the least possible one at which it stops
_FASTER, _SLOWER = 1.5, 0.5  # factors of the steps while the same adapter loses most, or another
_LEAST = 1e-6  # weight of an adapter that loses nothing
_TRIES = 8  # of lower targets; what an adapter still loses then is rounding, and is refused
_UNDER = 0.999  # of the error at which the next target is set while an adapter loses too much
_REST = 1e-9  # weight of the combination itself, for directions that no adapter has


class Shares(NamedTuple):
    """The parts that adapters have in a site, seen from an orthonormal basis of R columns.

    Args:
        parts: position of an adapter → `(R, r)` matrix F with `F F^T = D D^T` in the basis.
        whole: the same of the combination.
        rank: numerical rank of the combination.
    """

    parts: Mapping[int, Array]
    whole: Array
    rank: int

    def directions(self, weights: Mapping[int, float]) -> tuple[Array, Array]:
        """Return eigenvalues, descending, and eigenvectors of the weighted sum of Gram matrices."""
        import numpy as np

        energy = float((self.whole**2).sum())
        gram = (_REST / energy if energy > 0 else 0.0) * (self.whole @ self.whole.T)
        for position, part in self.parts.items():
            gram = gram + weights.get(position, 0.0) * (part @ part.T)
        values, vectors = np.linalg.eigh(gram)
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    def lost(self, vectors: Array, rank: int) -> dict[int, float]:
        """Return the energy that each adapter loses where `rank` of the directions are kept."""
        if rank >= self.rank:
            return dict.fromkeys(self.parts, 0.0)
        rest = vectors[:, rank:].T
        return {i: float(((rest @ part) ** 2).sum()) for i, part in self.parts.items()}


@dataclass(frozen=True)
class Balance:
    """The ranks of all sites for given weights of the adapters.

    Args:
        weights: position of an adapter → λ_i / ‖D_i‖².
        losses: position → √L_i.
    """

    weights: Mapping[int, float]
    ranks: Mapping[Site, int]
    losses: Mapping[int, float]


def balance_of(
    shares: Mapping[Site, Shares], shapes: Mapping[Site, tuple[int, ...]], cut: Cut
) -> Balance:
    """Find the weights by water-filling.

    Where `max_error` chooses the ranks, it limits the loss of every adapter.
    """
    found = _filled(shares, shapes, cut)
    limit = cut.rule.max_error if cut.rule.error_chooses else None
    target = limit or 1.0
    for _ in range(_TRIES):
        worst = max(found.losses.values(), default=0.0)
        if limit is None or worst <= limit:
            break
        target *= _UNDER * limit / worst
        found = _filled(shares, shapes, replace(cut, rule=replace(cut.rule, max_error=target)))
    return found


def _filled(
    shares: Mapping[Site, Shares], shapes: Mapping[Site, tuple[int, ...]], cut: Cut
) -> Balance:
    """Find the weights with sizes estimated until the last round."""
    energies = _energies(shares)
    level = dict.fromkeys(energies, 1.0 / max(1, len(energies)))  # λ
    rough = _estimated(shares, shapes, cut)
    best: tuple[float, Mapping[int, float]] = (math.inf, level)
    least, power = 0.0, 1.0
    loser: int | None = None
    for _ in range(_ROUNDS):
        lost = _at_weights(shares, shapes, rough, level, energies).losses
        squares = {i: loss**2 for i, loss in lost.items()}
        last, loser = loser, max(squares, key=squares.__getitem__, default=None)
        worst = 0.0 if loser is None else squares[loser]
        least = max(least, math.fsum(level[i] * square for i, square in squares.items()))
        if worst < best[0]:
            best = worst, level
        if last is not None:
            power *= _FASTER if loser == last else _SLOWER
        if worst <= _CLOSE * least or worst == 0.0:
            break
        level = _raised(level, squares, power)
    return _at_weights(shares, shapes, cut, best[1], energies)


def _raised(
    level: Mapping[int, float], squares: Mapping[int, float], power: float
) -> dict[int, float]:
    """Return λ with more for those that lose much, and less for those that lose little."""
    worst = max(squares.values())
    raised = {i: max(_LEAST, value * (squares[i] / worst) ** power) for i, value in level.items()}
    total = math.fsum(raised.values())
    return {i: value / total for i, value in raised.items()}


def _energies(shares: Mapping[Site, Shares]) -> dict[int, float]:
    """Return ‖D_i‖² over all sites of each adapter that has any, by its position."""
    found: dict[int, list[float]] = {}
    for one in shares.values():
        for position, part in one.parts.items():
            found.setdefault(position, []).append(float((part**2).sum()))
    sums = {position: math.fsum(parts) for position, parts in sorted(found.items())}
    return {position: energy for position, energy in sums.items() if energy > 0.0}


def _at_weights(
    shares: Mapping[Site, Shares],
    shapes: Mapping[Site, tuple[int, ...]],
    cut: Cut,
    level: Mapping[int, float],
    energies: Mapping[int, float],
) -> Balance:
    weights = {i: level[i] / energy for i, energy in energies.items()}
    seen = {site: one.directions(weights) for site, one in shares.items()}
    ranks = {
        site: min([one.rank, *filter(None, [cut.rule.cap(math.prod(shapes[site][2:]))])])
        for site, one in shares.items()
    }
    if cut.over_all:
        spectra = [
            SiteSpectrum(
                site,
                (shapes[site][0], math.prod(shapes[site][1:])),
                [float(value) for value in values[: ranks[site]]],
                float(values.sum()),
            )
            for site, (values, _) in seen.items()
        ]
        ranks = choose_ranks(spectra, cut)
    lost: dict[int, list[float]] = {i: [] for i in energies}
    for site, one in shares.items():
        for position, energy in one.lost(seen[site][1], ranks[site]).items():
            if position in lost:
                lost[position].append(energy)
    losses = {i: math.sqrt(math.fsum(parts) / energies[i]) for i, parts in lost.items()}
    return Balance(weights, ranks, losses)


def _estimated(
    shares: Mapping[Site, Shares], shapes: Mapping[Site, tuple[int, ...]], cut: Cut
) -> Cut:
    """Return the cut with sizes that are added up, which takes no encoding of the whole file."""
    sizes = cut.sizes
    if sizes is None or not cut.over_all:
        return cut
    empty = sizes.exact(dict.fromkeys(shares, 0))
    direction = {
        site: sizes.itemsize * (shape[0] + math.prod(shape[1:])) for site, shape in shapes.items()
    }
    first = {site: sizes.first(site) for site in shapes}

    def added(ranks: Mapping[Site, int]) -> int:
        return empty + sum(
            first[site] + rank * direction[site] for site, rank in ranks.items() if rank
        )

    return replace(cut, sizes=SizeModel(added, sizes.itemsize, sizes.first))

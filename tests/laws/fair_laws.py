"""The laws of a fair cut; each takes the implementation as its argument.

It is a function of ([(adapter, weight), …], rank) that gives an adapter. How much of an ingredient D is
lost is measured by what lies outside of the outputs of the result, or of its inputs, whichever is less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Site
from tests.builders.deltas import adapter, dense, distance, norm, of_spectrum, weighted
from tests.laws.laws import in_gauge

Array = np.ndarray[Any, Any]
Inputs = Sequence[tuple[Adapter, float]]
Fair = Callable[[Inputs, int], Adapter]

SHAPE = (24, 18)
SITES = ("unet.a", "unet.b", "unet.c")


def spread(seed: int, power: float, rank: int = 6, louder: float = 1.0) -> Adapter:
    """An adapter whose singular values fall like `i ** -power`, some sites louder than others."""
    sizes = [(i + 1) ** -power for i in range(rank)]
    return adapter(
        {
            name: of_spectrum(SHAPE, [louder**place * size for size in sizes], 10 * seed + place)
            for place, name in enumerate(SITES)
        }
    )


def losses(inputs: Inputs, result: Mapping[Site, Array]) -> list[float]:
    """The share of each ingredient's norm that is lost, over all sites.

    Of the two sides of each site those count that make the worst lose least.
    """
    parts = [dense(one) for one, _ in inputs]
    energies = np.array([norm(part) ** 2 for part in parts])
    sides = [
        (
            np.array([_outside(result[site], part[site]) for part in parts]),
            np.array([_outside(result[site].T, part[site].T) for part in parts]),
        )
        for site in parts[0]
    ]
    totals = [sum(chosen, np.zeros(len(parts))) / energies for chosen in product(*sides)]
    return [math.sqrt(value) for value in min(totals, key=max)]


def _outside(result: Array, own: Array) -> float:
    left, sizes, _ = np.linalg.svd(result, full_matrices=False)
    kept = left[:, sizes > 1e-6 * sizes[0]]
    return float(((own - kept @ (kept.T @ own)) ** 2).sum())


def best_by_grid(inputs: Inputs, rank: int, *, steps: int = 60) -> float:
    """The least possible loss of the worst of two ingredients, over weights on a grid, by outputs."""
    parts = [dense(one) for one, _ in inputs]
    energies = [norm(part) ** 2 for part in parts]
    worst = []
    for step in range(1, steps):
        shares = (step / steps, 1 - step / steps)
        lost = [0.0, 0.0]
        for site in parts[0]:
            gram = sum(
                s / e * p[site] @ p[site].T for s, e, p in zip(shares, energies, parts, strict=True)
            )
            kept = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
            for place, part in enumerate(parts):
                lost[place] += float(((part[site] - kept @ (kept.T @ part[site])) ** 2).sum())
        worst.append(max(value / energy for value, energy in zip(lost, energies, strict=True)))
    return math.sqrt(min(worst))


def fair_keeps_the_quiet_one(fair: Fair) -> None:
    """The worst ingredient loses at most half of what a truncated SVD of the sum makes it lose."""
    inputs = [(spread(1, 1.0), 20.0), (spread(2, 1.0), 1.0)]
    rank = 6
    total = weighted(inputs)
    kept = {}
    for site, value in total.items():
        up, sizes, down = np.linalg.svd(value, full_matrices=False)
        kept[site] = (up[:, :rank] * sizes[:rank]) @ down[:rank]
    result = fair(inputs, rank)
    assert max(losses(inputs, dense(result))) <= 0.5 * max(losses(inputs, kept))
    assert max(d.rank or 0 for d in result.deltas.values()) <= rank


def fair_does_not_hear_how_loud_one_is(fair: Fair) -> None:
    """Weights of the ingredients do not change who loses how much, signs included."""
    a, b = spread(3, 0.7), spread(4, 0.7)
    even = losses([(a, 1.0), (b, 1.0)], dense(fair([(a, 1.0), (b, 1.0)], 5)))
    for w in (30.0, -0.05):
        other = losses([(a, w), (b, 1.0)], dense(fair([(a, w), (b, 1.0)], 5)))
        assert np.allclose(even, other, rtol=0.03)


def fair_is_the_best_for_the_worst(fair: Fair) -> None:
    """No weights on a grid make the worst lose less; the ingredients differ in how they can be cut."""
    for first, second, rank in (
        (spread(5, 0.1, 3), spread(6, 0.1, 12), 3),
        (spread(7, 1.0, 5, louder=3.0), spread(8, 1.0, 5, louder=1 / 3), 4),
    ):
        inputs = [(first, 1.0), (second, 0.3)]
        assert max(losses(inputs, dense(fair(inputs, rank)))) <= 1.03 * best_by_grid(inputs, rank)


def fair_only_leaves_out(fair: Fair) -> None:
    """The result is a part of the sum at right angles to the rest: nothing is turned or rescaled."""
    inputs = [(spread(9, 0.5), 2.0), (spread(10, 0.5), 1.0)]
    total, made = weighted(inputs), dense(fair(inputs, 4))
    rest = {site: total[site] - made[site] for site in total}
    assert math.isclose(norm(total) ** 2, norm(made) ** 2 + norm(rest) ** 2, rel_tol=1e-5)


def fair_is_exact_where_all_fits(fair: Fair) -> None:
    inputs = [(spread(11, 0.5, 3), 2.0), (spread(12, 0.5, 3), -1.0)]
    assert distance(weighted(inputs), dense(fair(inputs, 6))) <= 1e-6 * norm(weighted(inputs))


def fair_does_not_depend_on_order_or_gauge(fair: Fair) -> None:
    a, b = spread(13, 0.8), spread(14, 0.4)
    expected = dense(fair([(a, 5.0), (b, 1.0)], 4))
    for other in ([(b, 1.0), (a, 5.0)], [(in_gauge(a, 1, 100.0), 5.0), (b, 1.0)]):
        assert distance(expected, dense(fair(other, 4))) <= 1e-3 * norm(expected)


FAIR_LAWS: tuple[Callable[[Fair], None], ...] = (
    fair_keeps_the_quiet_one,
    fair_does_not_hear_how_loud_one_is,
    fair_is_the_best_for_the_worst,
    fair_only_leaves_out,
    fair_is_exact_where_all_fits,
    fair_does_not_depend_on_order_or_gauge,
)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, LowRank
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from tests.builders.deltas import adapter, dense, norm, weighted
from tests.laws import fair_laws as laws
from tests.laws.fair_laws import Inputs


def ours(inputs: Inputs, rank: int) -> Adapter:
    given = [(one, Weight(weight)) for one, weight in inputs]
    return mix(given, RankRule(rank=rank), fair=True, threads=1)[0]


# ---- wrong ones


def _projected(inputs: Inputs, rank: int, shares: Any) -> Adapter:
    """The sum in the leading outputs of `Σ share(place, site) D Dᵀ`."""
    total = weighted(inputs)
    parts = [dense(one) for one, _ in inputs]
    deltas = {}
    for site, value in total.items():
        gram = sum(shares(place, site) * p[site] @ p[site].T for place, p in enumerate(parts))
        kept = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
        deltas[site.name] = LowRank.from_arrays(kept, kept.T @ value, value.shape)
    return adapter(deltas)


def the_loudest_first(inputs: Inputs, rank: int) -> Adapter:
    """A truncated SVD of the sum."""
    return mix([(a, Weight(w)) for a, w in inputs], RankRule(rank=rank), threads=1)[0]


def not_normalised(inputs: Inputs, rank: int) -> Adapter:
    """Counts energy as the weights make it."""
    return _projected(inputs, rank, lambda place, _: inputs[place][1] ** 2)


def not_filled(inputs: Inputs, rank: int) -> Adapter:
    """Gives all the same weight, whatever they lose."""
    energies = [norm(dense(one)) ** 2 for one, _ in inputs]
    return _projected(inputs, rank, lambda place, _: 1 / energies[place])


def site_by_site(inputs: Inputs, rank: int) -> Adapter:
    """Makes all equally loud in every site, also where one has nothing to say."""
    parts = [dense(one) for one, _ in inputs]
    return _projected(inputs, rank, lambda place, site: 1 / float((parts[place][site] ** 2).sum()))


def half_of_each(inputs: Inputs, rank: int) -> Adapter:
    """Cuts each ingredient by itself and adds what is left."""
    total: dict[Any, Any] = {}
    for one, weight in inputs:
        for site, value in dense(one).items():
            up, sizes, down = np.linalg.svd(value, full_matrices=False)
            part = (up * sizes)[:, : rank // 2] @ down[: rank // 2]
            total[site.name] = total.get(site.name, 0) + weight * part
    deltas = {}
    for name, value in total.items():
        up, sizes, down = np.linalg.svd(value, full_matrices=False)
        deltas[name] = LowRank.from_arrays((up * sizes)[:, :rank], down[:rank], value.shape)
    return adapter(deltas)


def the_first_counts_twice(inputs: Inputs, rank: int) -> Adapter:
    energies = [norm(dense(one)) ** 2 for one, _ in inputs]
    return _projected(inputs, rank, lambda place, _: (2 - place) / energies[place])


def one_too_few(inputs: Inputs, rank: int) -> Adapter:
    return ours(inputs, rank - 1)


@pytest.mark.parametrize("law", laws.FAIR_LAWS, ids=lambda law: law.__name__)
def test_ours_holds(law: Any) -> None:
    law(ours)


@pytest.mark.parametrize(
    ("law", "implementation"),
    [
        (laws.fair_keeps_the_quiet_one, the_loudest_first),
        (laws.fair_keeps_the_quiet_one, not_normalised),
        (laws.fair_does_not_hear_how_loud_one_is, the_loudest_first),
        (laws.fair_does_not_hear_how_loud_one_is, not_normalised),
        (laws.fair_is_the_best_for_the_worst, not_filled),
        (laws.fair_is_the_best_for_the_worst, site_by_site),
        (laws.fair_is_the_best_for_the_worst, half_of_each),
        (laws.fair_only_leaves_out, half_of_each),
        (laws.fair_is_exact_where_all_fits, one_too_few),
        (laws.fair_does_not_depend_on_order_or_gauge, the_first_counts_twice),
    ],
    ids=lambda f: f.__name__,
)
def test_the_law_finds_the_error(law: Any, implementation: Any) -> None:
    with pytest.raises(AssertionError):
        law(implementation)


def test_every_law_has_a_wrong_implementation_that_breaks_it() -> None:
    (marks,) = test_the_law_finds_the_error.pytestmark  # type: ignore[attr-defined]
    assert {law for law, _ in marks.args[1]} == set(laws.FAIR_LAWS)

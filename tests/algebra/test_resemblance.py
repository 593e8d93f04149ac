"""Copies are found among many adapters, each with its kind; others are not paired."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra.gram import at_common_sites, gram
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resemblance import clusters, copies, cosines
from loramerge.algebra.resize import resize
from tests.algebra.test_compare import rounded
from tests.algebra.test_ingredients import generated, mixed
from tests.laws.laws import in_gauge, scaled


def found_in(adapters: list[Adapter]) -> dict[tuple[int, int], str]:
    whole = at_common_sites(adapters)
    pairs = copies(whole, gram(whole, threads=1))
    return {(one.a, one.b): one.kinship.kind + " anew" * one.refactored for one in pairs}


@pytest.mark.parametrize("many", [4, pytest.param(1000, marks=pytest.mark.long_tail)])
def test_all_copies_and_no_others(many: int) -> None:
    shapes = {"unet.a": (20, 16), "unet.b": (12, 30)}
    a, *others = (generated(seed, 4, shapes) for seed in range(many))
    variants = [
        in_gauge(a, 3, 30.0),
        resize(a, RankRule(rank=3), threads=1)[0],
        scaled(a, 0.7),
        rounded(a),
    ]
    kinds = found_in([a, *variants, *others])
    assert {pair: kind for pair, kind in kinds.items() if pair[0] == 0} == {
        (0, 1): "same anew", (0, 2): "resized", (0, 3): "rescaled", (0, 4): "rounded",
    }  # fmt: skip
    assert max(b for _, b in kinds) == 4


def test_clusters_are_joined_by_neighbours() -> None:
    library = [generated(seed) for seed in range(6)]
    chain = [mixed(library, {n: 1.0, n + 1: 1.0}) for n in range(3)]  # 0+1, 1+2, 2+3
    adapters = [*chain, library[5], generated(5)]
    cosine = cosines(gram(adapters, threads=1))
    assert clusters(cosine, 0.4) == [[0, 1, 2], [3, 4]]
    assert clusters(cosine, 0.9) == [[3, 4]]


def test_what_changes_nothing_is_in_no_cluster() -> None:
    cosine = cosines(gram([generated(1), scaled(generated(1), 0.0)], threads=1))
    assert np.isnan(cosine[0, 1])
    assert clusters(cosine, 0.1) == []
    assert found_in([generated(1), scaled(generated(1), 0.0)]) == {}

"""Inner products of sketches are nearly those of the deltas, whatever the factors."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.algebra import sketch as sketches
from loramerge.algebra.gram import gram, operations
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resemblance import cosines
from loramerge.algebra.resize import resize
from loramerge.algebra.sketch import inner_products, sketch
from loramerge.errors import NumericsError
from tests.algebra.test_compare import rounded
from tests.algebra.test_ingredients import generated, mixed
from tests.builders.deltas import adapter, full, low_rank
from tests.laws.laws import in_gauge, scaled

SITES = {f"unet.{n}": (24, 20) for n in range(30)}
LIBRARY = [generated(seed, 2, SITES) for seed in range(10)]


def test_a_sketch_does_not_depend_on_factors() -> None:
    a = generated(1)
    assert sketch(in_gauge(a, 2, 50.0)) == pytest.approx(sketch(a), rel=1e-6, abs=1e-6)
    assert sketch(scaled(a, 0.7)) == pytest.approx(0.7 * sketch(a))
    dense = adapter({"unet.a": full((20, 16), 3)})
    up, singular, down = np.linalg.svd(dense.deltas[next(iter(dense.deltas))].dense())
    same = type(low_rank((20, 16), 1)).from_arrays(up[:, :16] * singular, down, (20, 16))
    assert sketch(adapter({"unet.a": same})) == pytest.approx(sketch(dense), rel=1e-4, abs=1e-5)


def test_products_are_near_those_of_the_deltas() -> None:
    blend = mixed(LIBRARY, {0: 1.0, 1: 1.0})
    adapters = [*LIBRARY, blend, resize(blend, RankRule(rank=2), threads=1)[0]]
    rows = np.stack([sketch(one) for one in adapters])
    exact = cosines(gram(adapters, threads=1))
    assert np.abs(cosines(rows @ rows.T) - exact).max() < 0.08
    shuffled = np.stack([np.roll(row, n) for n, row in enumerate(rows)])
    assert np.abs(cosines(shuffled @ shuffled.T) - exact).max() > 0.3


def test_what_is_related_is_exact() -> None:
    a = LIBRARY[0]
    adapters = [*LIBRARY, scaled(a, 0.7), rounded(a), resize(a, RankRule(rank=1), threads=1)[0]]
    found, exact = inner_products(adapters, most=0.0, threads=1)
    known = gram(adapters, threads=1)
    assert not exact and inner_products(adapters, threads=1)[1]
    near = np.abs(cosines(known)) >= sketches.RELATED
    assert found[near] == pytest.approx(known[near], rel=1e-12)
    assert near.sum() > len(adapters)
    assert np.abs(cosines(found) - cosines(known)).max() < sketches.RELATED


def test_nan_is_refused_there_too() -> None:
    bad = generated(2)
    next(iter(bad.deltas.values())).up.numpy()[0, 0] = np.nan  # type: ignore[attr-defined]
    with pytest.raises(NumericsError):
        inner_products([generated(1), bad, generated(3)], most=0.0, threads=1)


def test_operations_grow_with_the_square_of_ranks() -> None:
    one = {"unet.a": (20, 16)}
    assert operations([generated(1, 2, one), generated(2, 3, one)]) == 5**2 * 36

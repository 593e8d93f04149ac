"""Inner products of many adapters are the dense ones; ingredients are the exact non-negative fit."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra import gram as grams
from loramerge.algebra.gram import at_common_sites, gram
from loramerge.algebra.ingredients import ingredients, nonnegative
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.errors import NumericsError
from tests.builders.deltas import adapter, full, low_rank, oracle, rng, tucker

SHAPES = {"unet.a": (20, 16), "unet.b": (12, 30), "text_encoder.c": (24, 24)}


def generated(seed: int, rank: int = 2, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Adapter:
    return adapter(
        {n: low_rank(s, rank, 100 * seed + i) for i, (n, s) in enumerate(shapes.items())}
    )


def mixed(library: list[Adapter], weights: dict[int, float], rank: int | None = None) -> Adapter:
    inputs = [(library[n], Weight(w)) for n, w in weights.items()]
    return mix(inputs, RankRule(rank=rank), threads=1)[0]


def vectors(adapters: list[Adapter]) -> np.ndarray:
    """ΔW of every adapter as a row, zeros where it lacks a module."""
    dense = [oracle(a) for a in adapters]
    sites = {s: x[s].size for x in dense for s in x}
    rows = [
        np.concatenate([x[s].ravel() if s in x else np.zeros(size) for s, size in sites.items()])
        for x in dense
    ]
    return np.array(rows)


@pytest.mark.parametrize("width", [1, 5, 2048])
def test_inner_products_are_the_dense_ones(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "_WIDTH", width)  # columns multiplied at once
    adapters = [
        generated(1),
        generated(2, rank=5),
        adapter({"unet.a": full((20, 16), 3), "unet.n": full((7,), 4, "w_norm")}),
        adapter({"unet.d": tucker((6, 4, 3, 3), 3, 5), "unet.a": low_rank((20, 16), 1, 6)}),
        adapter({"unet.d": low_rank((6, 4, 3, 3), 2, 7), "unet.n": full((7,), 8, "w_norm")}),
        generated(1),
    ]
    found = gram(at_common_sites(adapters), threads=1)
    rows = vectors(adapters)
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-9, atol=1e-9)
    assert np.array_equal(found, gram(at_common_sites(adapters), threads=3))


def test_modules_of_other_shapes_count_as_zero() -> None:
    one, other = (adapter({"unet.a": low_rank((20, n), 2, 1)}) for n in (16, 18))
    assert gram([one, other], threads=1)[0, 1] == 0.0


def test_nan_names_its_file() -> None:
    bad = generated(2)
    next(iter(bad.deltas.values())).up.numpy()[0, 0] = np.nan  # type: ignore[attr-defined]
    bad = adapter({s.name: d for s, d in bad.deltas.items()}, path="bad.safetensors")
    with pytest.raises(NumericsError) as caught:
        gram([generated(1), bad, generated(3)], threads=1)
    assert caught.value.file == "bad.safetensors"


def best_by_trying(products: np.ndarray, targets: np.ndarray) -> float:
    """The least value over all sets of weights that may be positive."""
    best = 0.0
    for count in range(1, len(targets) + 1):
        for chosen in map(list, combinations(range(len(targets)), count)):
            w = np.linalg.lstsq(products[np.ix_(chosen, chosen)], targets[chosen], rcond=None)[0]
            if (w >= 0).all():
                best = min(best, -float(targets[chosen] @ w))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_weights_are_the_best_that_are_not_negative(seed: int) -> None:
    random = rng(seed)
    matrix, target = random.standard_normal((9, 6)), random.standard_normal(9)
    if seed % 3 == 0:
        matrix[:, 4] = matrix[:, 1]  # two copies
    products, targets = matrix.T @ matrix, matrix.T @ target
    found = nonnegative(products, targets)
    assert (found >= 0).all()
    value = float(found @ products @ found - 2 * targets @ found)
    assert value == pytest.approx(best_by_trying(products, targets), abs=1e-9)
    clipped = np.maximum(np.linalg.lstsq(products, targets, rcond=None)[0], 0.0)
    if (clipped == 0).any():  # what one gets without active sets
        assert value <= float(clipped @ products @ clipped - 2 * targets @ clipped) + 1e-9


def test_nothing_is_explained_by_nothing() -> None:
    assert nonnegative(np.zeros((0, 0)), np.zeros(0)).size == 0
    assert not nonnegative(np.eye(3), -np.ones(3)).any()


def test_three_of_many_are_found_with_their_weights() -> None:
    small = {"unet.a": (20, 16), "unet.b": (12, 30)}
    library = [generated(seed, 1, small) for seed in range(200)]
    wanted = {17: 0.6, 80: 0.3, 141: 0.1}
    found = ingredients(mixed(library, wanted), library, threads=1)
    assert {n: w for n, w in found.weights.items() if w > 0.02} == pytest.approx(wanted, abs=0.02)
    assert found.remainder < 1e-3 and found.hidden < 1e-6


def test_what_truncation_hides_is_told() -> None:
    library = [generated(seed) for seed in range(8)]
    wanted = {1: 0.6, 4: 0.3, 6: 0.1}
    mystery = mixed(library, wanted, rank=2)
    found = ingredients(mystery, library, threads=1)
    rows = vectors([mystery, *library])
    target, matrix = rows[0], rows[1:].T
    weights = np.zeros(8)
    weights[list(found.weights)] = list(found.weights.values())
    slope = matrix.T @ (target - matrix @ weights)
    assert slope[weights > 0] == pytest.approx(0.0, abs=1e-6)  # the conditions of the exact fit
    assert (slope[weights == 0] <= 1e-4).all()
    size = np.linalg.norm(target)
    assert found.remainder == pytest.approx(np.linalg.norm(target - matrix @ weights) / size)
    total = mixed(library, found.weights)
    cut = mixed(library, found.weights, rank=2)
    whole, part = vectors([total, cut])
    assert found.ranks == (2, max(total.ranks()))
    assert found.hidden == pytest.approx(np.linalg.norm(whole - part) / np.linalg.norm(whole))
    assert found.remainder_cut == pytest.approx(np.linalg.norm(target - part) / size, rel=1e-5)
    assert found.weights[6] < 0.1 if 6 in found.weights else True  # the quiet one was cut


def test_a_stranger_stays_unexplained() -> None:
    library = [generated(seed) for seed in range(4)]
    found = ingredients(generated(99), library, threads=1)
    assert found.remainder > 0.9
    none = ingredients(adapter({"unet.z": low_rank((9, 7), 2, 1)}), library, threads=1)
    assert none.weights == {} and none.remainder == none.remainder_cut == 1.0

"""Copies are told by their deltas, however they were factored, scaled, cut or rounded."""

from __future__ import annotations

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra import kinship as kinships
from loramerge.algebra.compare import compare, verdict
from loramerge.algebra.kinship import Kinship
from loramerge.algebra.mix import mix
from loramerge.algebra.moments import Moments
from loramerge.algebra.overlap import products, spectrum_of
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.weights import Weight
from tests.algebra.test_compare import rounded, sample
from tests.builders.deltas import adapter, full, low_rank, of_spectrum, oracle
from tests.laws.laws import in_gauge, scaled

A = sample(1)


def cut(a: Adapter, rank: int) -> Adapter:
    return resize(a, RankRule(rank=rank), threads=1)[0]


def related(share: float) -> Adapter:
    return mix([(A, Weight(1.0)), (sample(50), Weight(share))], threads=1)[0]


def without(a: Adapter, name: str) -> Adapter:
    return a.with_deltas({s: d for s, d in a.deltas.items() if s.name != name})


COPIES = {
    "in another gauge": (in_gauge(A, 3, 100.0), "same", 1.0),
    "in half": (rounded(A), "rounded", 1.0),
    "louder": (scaled(A, 1.5), "rescaled", 1.5),
    "resized": (cut(A, 2), "resized", 1.0),
    "resized, in another gauge, in half and quieter": (
        scaled(rounded(in_gauge(cut(A, 2), 4, 10.0)), 0.7),
        "resized",
        0.7,
    ),
    "resized to rank 1": (cut(A, 1), "resized", 1.0),
    "without a module": (without(A, "unet.mid_block.c"), "resized", 1.0),
}
OTHERS = {
    "unrelated": sample(50),
    "related": related(1.0),
    "close": related(0.1),
    "a truncation of another mix": cut(related(0.3), 2),
    "another direction": adapter({"unet.mid_block.c": low_rank((8, 6, 3, 3), 1, 9)}),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_both_ways(name: str) -> None:
    copy, kind, factor = COPIES[name]
    found, turned = compare(A, copy).kinship, compare(copy, A).kinship
    assert (found.kind, turned.kind) == (kind, kind)
    assert found.is_copy
    assert found.factor == pytest.approx(factor, rel=2e-3)
    assert turned.factor == pytest.approx(1 / factor, rel=2e-3)
    if kind == "resized":
        assert (found.smaller, turned.smaller) == ("B", "A")
        whole, part = oracle(A), oracle(copy)
        gap = sum(((x - part.get(s, 0.0) / factor) ** 2).sum() for s, x in whole.items())
        size = sum((x**2).sum() for x in whole.values())
        assert found.lost == turned.lost == pytest.approx((gap / size) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not_copies(name: str) -> None:
    for pair in ((A, OTHERS[name]), (OTHERS[name], A)):
        assert compare(*pair).kinship == Kinship("other")


def test_a_part_that_is_not_the_best_of_its_rank_is_no_truncation() -> None:
    values = [4.0, 3.0, 2.0, 1.0]
    whole = of_spectrum((20, 16), values, 1)
    up, down = whole.factors("float64")
    parts = {(0, 1): "resized", (0, 2): "other", (2, 3): "other"}
    for kept, kind in parts.items():
        part = type(whole).from_arrays(up[:, kept], down[list(kept)], whole.shape)
        assert compare(adapter({"unet.x": whole}), adapter({"unet.x": part})).kinship.kind == kind


def test_one_direction_of_sixty_four_is_missed() -> None:
    whole = adapter({"unet.x": of_spectrum((80, 70), np.linspace(2, 1, 64).tolist(), 1)})
    found = compare(whole, cut(whole, 63)).kinship
    assert (found.kind, found.ranks) == ("resized", (63, 63))
    assert 0.07 < found.lost < 0.1


@pytest.mark.parametrize(("name", "wrong"), [("_CAPTURED", 0.9), ("_NEAR", 9.0)])
def test_both_bounds_are_needed(name: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    flat, steep = of_spectrum((40, 40), [1.0] * 20, 1), of_spectrum((40, 40), [9.0, 0.5], 2)
    up, down = flat.factors("float64")
    turned = np.concatenate([up[:, :1] + 0.3 * up[:, 1:2], up[:, 2:3]], axis=1)
    near = type(flat).from_arrays(turned / np.linalg.norm(turned, axis=0), down[[0, 2]], (40, 40))
    up, down = steep.factors("float64")
    tilted = type(steep).from_arrays(up[:, :1] + 0.1 * up[:, 1:], down[:1], (40, 40))
    pairs = [(adapter({"u.x": x}), adapter({"u.x": y})) for x, y in ((flat, near), (steep, tilted))]
    assert [compare(*pair).kinship.kind for pair in pairs] == ["other", "other"]
    monkeypatch.setattr(kinships, name, wrong)
    assert "resized" in [compare(*pair).kinship.kind for pair in pairs]


def test_words() -> None:
    small = cut(A, 2)
    words = verdict(compare(A, small))
    assert words.startswith("B is A resized to rank 2: ")
    assert words.endswith(f": relative error {compare(A, small).kinship.lost:.2g}.")
    assert verdict(compare(small, A)).startswith("A is B resized to rank 2: ")
    assert verdict(compare(A, scaled(small, 0.7))).startswith("B is A times 0.7 and resized to")
    assert verdict(compare(scaled(small, 0.5), A)).startswith("A is B times 0.5 and resized to")
    assert "Their factors differ." in verdict(compare(A, in_gauge(A, 3, 100.0)))
    assert "factors" not in verdict(compare(A, A))


def test_the_overlap_is_that_of_principal_angles() -> None:
    one, other = low_rank((20, 16), 3, 1), low_rank((20, 16), 5, 2)
    moments, found = products(one.factors("float64"), other.factors("float64"))
    u, s, v = np.linalg.svd(one.dense(dtype="float64"))
    p, t, q = np.linalg.svd(other.dense(dtype="float64"))
    weights = np.outer(s**2, t**2)
    size = ((s**4).sum() * (t**4).sum()) ** 0.5
    outputs = (weights * (u.T @ p)[:16, :16] ** 2).sum() / size
    assert found.outputs == pytest.approx(outputs)
    assert found.inputs == pytest.approx((weights * (v @ q.T) ** 2).sum() / size)
    assert found.outputs != pytest.approx(found.inputs, rel=1e-2)
    assert moments.aa == pytest.approx((s**2).sum())
    assert moments.ratio == pytest.approx(((t**2).sum() / (s**2).sum()) ** 0.5)
    up, down = one.factors("float64")
    itself = products((up, down), (3 * up, down))[1]
    assert itself.outputs == pytest.approx(1.0)


def test_the_overlap_of_nothing_is_not_known() -> None:
    zero = (np.zeros((4, 2)), np.zeros((2, 4)))
    moments, found = products(zero, zero)
    assert (found.outputs, found.inputs, moments.ratio) == (None, None, None)
    assert Moments(1.0, 0.0, 0.0).fit == 0.0


def test_what_has_no_factors_counts_by_its_norm() -> None:
    dense = full((6, 5), 3)
    assert spectrum_of(dense) == pytest.approx([np.linalg.norm(dense.dense())])
    whole = adapter({"unet.f": dense, "unet.x": of_spectrum((9, 7), [2.0, 1.0], 4)})
    assert compare(whole, cut(whole, 1)).kinship.kind == "resized"
    assert compare(whole, whole).kinship.kind == "same"

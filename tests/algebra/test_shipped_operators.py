"""Every shipped operator against its definition on dense float64 matrices, and its own properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra import spaces
from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.outcome import Combined
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.weights import Weight
from loramerge.errors import UsageError
from tests.algebra.definitions import (
    DEFINITIONS,
    Array,
    Terms,
    agreeing,
    on_shared_directions,
    protect,
    slerp,
    svd,
    ties,
    ties_knots,
    tsv_m,
)
from tests.builders.deltas import adapter, dense, low_rank, site

SHAPE, WEIGHTS = (18, 25), (0.7, 0.4, 0.9)
PLACE = site("unet.x")


def adapters(count: int = 3, shape: tuple[int, ...] = SHAPE) -> list[Adapter]:
    """Adapters of ranks 2, 3, … with a direction in common."""
    return [
        adapter({"unet.x": low_rank(shape, 2 + i, 40 + i, dtype="float64", alpha=3.0)})
        for i in range(count)
    ]


def terms_of(found: Sequence[Adapter]) -> Terms:
    return [(w, dense(a)[PLACE].reshape(-1)) for a, w in zip(found, WEIGHTS, strict=False)]


def merge(
    found: Sequence[Adapter], name: str, scale: str = "literal", **values: Any
) -> tuple[Array, Combined]:
    """The merged matrix, whole: nothing is cut but by an operator itself."""
    method = Method.of(find_operator(name), values, scale)
    inputs = [(a, Weight(w)) for a, w in zip(found, WEIGHTS, strict=False)]
    full = RankRule(rank=min(SHAPE)) if method.operator.space == "elements" else RankRule()
    result, combined = mix(inputs, full, method=method, threads=1)
    values_ = dense(result).get(PLACE)
    return (np.zeros(SHAPE) if values_ is None else values_), combined


RANDOM = {"dare", "dare-ties", "dare-ties-knots", "della"}  # against their expectation, below


@pytest.mark.parametrize(
    ("name", "definition", "count", "values"), DEFINITIONS, ids=lambda v: getattr(v, "__name__", "")
)
def test_an_operator_equals_its_definition(
    name: str, definition: Callable[[Terms], Array], count: int, values: dict[str, Any]
) -> None:
    found = adapters(count)
    terms = [(w, dense(a)[PLACE]) for a, w in zip(found, WEIGHTS, strict=False)]
    expected = definition(terms)
    result, _ = merge(found, name, **values)
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(result - expected) <= 2e-7 * np.linalg.norm(expected)


def test_every_operator_is_here() -> None:
    here = {name for name, *_ in DEFINITIONS} | RANDOM | {"linear", "ties-core"}
    assert here == {one.name for one in OPERATORS.shipped()}


@pytest.mark.parametrize("name", [n for n, *_ in DEFINITIONS if find_operator(n).needs_factors])
def test_no_dense_matrix_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a dense matrix was made")

    monkeypatch.setattr(spaces, "matrix", fail)
    monkeypatch.setattr("loramerge.adapter.kinds.lora.LowRank.dense", fail)
    method = Method.of(find_operator(name))
    mix([(a, Weight(0.5)) for a in adapters()], method=method, threads=1)


# ---- the correction after a method


CORRECTED = [("linear", lambda ts: sum(w * v for w, v in ts)), ("slerp", slerp), ("tsv-m", tsv_m),
             ("ties", ties), ("ties-knots", ties_knots), ("protect", protect)]  # fmt: skip


def corrected(ts: Terms, merge: Callable[[Terms], Array]) -> Array:
    """SVC of any result, direction by direction."""
    u, s, v = svd(merge(ts))
    result = np.zeros(ts[0][1].shape)
    for r in range(len(s)):
        whole = s[r] * v[r]
        times = [
            whole @ (u[:, r] @ (w * x)) / np.linalg.norm(u[:, r] @ (w * x)) ** 2 for w, x in ts
        ]
        result += len(ts) / sum(max(1.0, t) for t in times) * s[r] * np.outer(u[:, r], v[r])
    return result


@pytest.mark.parametrize(
    ("name", "definition"), CORRECTED, ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("shape", [SHAPE, (25, 18)])
def test_a_correction_follows_any_method(
    name: str, definition: Callable[[Terms], Array], shape: tuple[int, int]
) -> None:
    found = adapters(2, shape)
    terms = [(w, dense(a)[PLACE]) for a, w in zip(found, WEIGHTS, strict=False)]
    method = Method.of(find_operator(name), scale="literal", correction=find_operator("svc"))
    full = RankRule(rank=min(SHAPE)) if method.operator.space == "elements" else RankRule()
    inputs = [(a, Weight(w)) for a, w in zip(found, WEIGHTS, strict=False)]
    result = dense(mix(inputs, full, method=method, threads=1)[0])[PLACE]
    expected = corrected(terms, definition)
    assert np.linalg.norm(result - expected) <= 2e-7 * np.linalg.norm(expected)
    if name == "linear":
        assert np.linalg.norm(result - definition(terms)) > 1e-3 * np.linalg.norm(expected)


def test_the_corrected_sum_is_svc() -> None:
    inputs = [(a, Weight(w)) for a, w in zip(adapters(), WEIGHTS, strict=True)]
    svc_ = find_operator("svc")
    for scale in ("literal", "norm-match", 0.5):
        one = Method.of(find_operator("linear"), scale=scale, correction=svc_)
        (a, first), (b, second) = (
            mix(inputs, method=m, threads=1) for m in (one, Method.of(svc_, scale=scale))
        )
        assert np.linalg.norm(dense(a)[PLACE] - dense(b)[PLACE]) <= 2e-7 * np.linalg.norm(
            dense(b)[PLACE]
        )
        assert first.scales == pytest.approx(second.scales, rel=1e-6)


# ---- properties that users count on


def test_copies_of_one_adapter_count_once() -> None:
    (one,) = adapters(1)
    own = dense(one)[PLACE]
    inputs = [(one, Weight(1.0))] * 3
    for name in ("svc", "karcher", "regmean-proxy", "cart", "sce", "norm-equalised"):
        scale = "norm-match" if name == "norm-equalised" else "literal"
        method = Method.of(find_operator(name), scale=scale)
        full = RankRule(rank=min(SHAPE)) if method.operator.space == "elements" else RankRule()
        result, _ = mix(inputs, full, method=method, threads=1)
        times = 3 if name == "karcher" else 1  # the weights sum to 3
        assert np.linalg.norm(dense(result)[PLACE] - times * own) <= 1e-6 * np.linalg.norm(own), (
            name
        )


def test_the_protected_adapter_acts_on_its_inputs_as_alone() -> None:
    first, second = adapters(2)
    result, _ = merge([first, second], "protect")
    own = dense(first)[PLACE]
    inputs = svd(own)[2].T
    assert np.abs(result @ inputs - WEIGHTS[0] * own @ inputs).max() <= 1e-6
    plain, _ = merge([first, second], "protect", strength=0.0)
    total = sum(w * dense(a)[PLACE] for a, w in zip((first, second), WEIGHTS, strict=False))
    assert np.linalg.norm(plain - total) <= 1e-6 * np.linalg.norm(total)


@pytest.mark.parametrize("name", ["dare"])
def test_dropping_at_random_is_the_sum_in_expectation(name: str) -> None:
    found = adapters(2)
    total = sum(w * dense(a)[PLACE] for a, w in zip(found, WEIGHTS, strict=False))
    mean = np.mean([merge(found, name, seed=seed)[0] for seed in range(200)], axis=0)
    assert np.linalg.norm(mean - total) < 0.15 * np.linalg.norm(total)
    assert np.linalg.norm(merge(found, name, seed=1)[0] - total) > 0.3 * np.linalg.norm(total)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_everything_kept_is_no_choice(name: str) -> None:
    """With a density of 1 nothing is dropped; what elects signs is then the mean of what agrees."""
    found = adapters(2)
    terms = [(w, dense(a)[PLACE]) for a, w in zip(found, WEIGHTS, strict=False)]
    values = {"density": 1.0} | ({"epsilon": 0.0} if name == "della" else {})
    expected = sum(w * v for w, v in terms) if name == "dare" else agreeing(terms)
    if name == "dare-ties-knots":
        expected = on_shared_directions(terms, agreeing, sized=False)
    result, _ = merge(found, name, **values)
    assert np.linalg.norm(result - expected) <= 2e-7 * np.linalg.norm(expected)


def test_della_keeps_large_entries_more_often() -> None:
    found = adapters(1) * 2
    values = np.abs(dense(found[0])[PLACE])
    kept = sum(
        np.abs(merge(found, "della", epsilon=0.8, density=0.5, seed=seed)[0]) > 1e-9
        for seed in range(30)
    )
    order = values.argsort(axis=1)
    lowest, highest = order[:, :5], order[:, -5:]
    rows = np.arange(len(values))[:, None]
    assert np.asarray(kept)[rows, highest].mean() > np.asarray(kept)[rows, lowest].mean() + 5


def test_ties_core_trims_in_the_shared_basis() -> None:
    """With everything kept and no signs in conflict, it is the plain mean."""
    (one,) = adapters(1)
    result, _ = merge([one, one], "ties-core", density=1.0)
    own = dense(one)[PLACE] * (WEIGHTS[0] + WEIGHTS[1]) / 2
    assert np.linalg.norm(result - own) <= 1e-7 * np.linalg.norm(own)


# ---- the final scale


@pytest.mark.parametrize("name", [one.name for one in OPERATORS.shipped()])
@pytest.mark.parametrize("scale", ["norm-match", "1/sqrt", "0.5", "-2"])
def test_the_final_scale(name: str, scale: str) -> None:
    found = adapters(2)
    literal, _ = merge(found, name)
    result, combined = merge(found, name, scale)
    norms = [w * np.linalg.norm(dense(a)[PLACE]) for a, w in zip(found, WEIGHTS, strict=False)]
    factor = {
        "norm-match": float(np.mean(norms) / np.linalg.norm(literal)),
        "1/sqrt": 1 / math.sqrt(2),
        "0.5": 0.5,
        "-2": -2.0,
    }[scale]
    assert np.linalg.norm(result - factor * literal) <= 3e-7 * np.linalg.norm(literal)
    assert combined.scales == pytest.approx((factor, factor), rel=1e-6)


def test_a_module_of_one_adapter_keeps_its_weight_under_any_rule() -> None:
    first = adapter({"unet.x": low_rank(SHAPE, 2, 1), "unet.y": low_rank(SHAPE, 2, 2)})
    second = adapter({"unet.x": low_rank(SHAPE, 2, 3)})
    for scale, factor in (("norm-match", 1.0), ("1/sqrt", 1.0), (0.25, 0.25)):
        method = Method.of(find_operator("tsv-m"), scale=scale)
        result, _ = mix([(first, Weight(0.6)), (second, Weight(1.0))], method=method, threads=1)
        alone = factor * 0.6 * dense(first)[site("unet.y")]
        assert np.allclose(dense(result)[site("unet.y")], alone, rtol=1e-6, atol=1e-9)


def test_cancelled_changes_are_not_scaled_up() -> None:
    (one,) = adapters(1)
    other = adapter({"unet.y": low_rank(SHAPE, 2, 9)})
    inputs = [(one, Weight(1.0)), (one, Weight(-1.0)), (other, Weight(1.0))]
    result, _ = mix(
        inputs, method=Method.of(find_operator("linear"), scale="norm-match"), threads=1
    )
    assert PLACE not in result.deltas or np.abs(dense(result)[PLACE]).max() <= 1e-6


@pytest.mark.parametrize("scale", ["loud", "0", "nan", "inf", ""])
def test_scales_that_cannot_be(scale: str) -> None:
    with pytest.raises(UsageError, match="scale"):
        Method.of(find_operator("ties"), scale=scale)


@pytest.mark.parametrize(("name", "count"), [("slerp", 3), ("slerp", 1), ("model-stock", 1)])
def test_numbers_of_adapters_that_cannot_be(name: str, count: int) -> None:
    with pytest.raises(UsageError, match="number of adapters"):
        merge(adapters(count), name)

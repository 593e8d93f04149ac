"""Every shipped operator against its definition on dense float64 matrices, and its own properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
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
from tests.builders.deltas import adapter, dense, low_rank, site
from tests.stream import dense_merges

Array = np.ndarray[Any, Any]
Terms = Sequence[tuple[float, Array]]

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


def largest(values: Array, share: float) -> Array:
    """The largest entries, one by one."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[: int(share * values.size)]
    kept = np.zeros(values.size)
    kept[order] = values.ravel()[order]
    return kept.reshape(values.shape)


# ---- definitions on dense matrices


def norm_equalised(ts: Terms) -> Array:
    norms = [np.linalg.norm(v) for _, v in ts]
    mean = math.prod(norms) ** (1 / len(norms))
    return sum(w * mean / n * v for (w, v), n in zip(ts, norms, strict=True))


def subtract(ts: Terms) -> Array:
    return ts[0][0] * ts[0][1] - sum(w * v for w, v in ts[1:])


def cosine_adaptive(kind: str, ts: Terms) -> Array:
    (u, a), (v, b) = ts
    found = dense_merges.cosine_adaptive({"x": a}, {"x": b}, v / (u + v), kind)
    return (u + v) * found["x"]


def train_difference(ts: Terms) -> Array:
    return dense_merges.train_difference([v for _, v in ts], [w for w, _ in ts])


def on_the_arc(a: Array, b: Array, u: float, v: float) -> Array:
    t = v / (u + v)
    angle = math.acos(float(a.ravel() @ b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b))
    return (u + v) * (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def slerp(ts: Terms) -> Array:
    (u, a), (v, b) = ts
    return on_the_arc(a, b, u, v)


def nuslerp(ts: Terms) -> Array:
    (u, a), (v, b) = ts
    return np.array([on_the_arc(x, y, u, v) for x, y in zip(a, b, strict=True)])


def karcher(ts: Terms) -> Array:
    """By many small steps towards the vectors."""
    units = [v / np.linalg.norm(v) for _, v in ts]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(3000):
        step = np.zeros_like(mean)
        for (w, _), unit in zip(ts, units, strict=True):
            near = float((mean * unit).sum())
            across = unit - near * mean
            step += w * math.acos(near) * across / np.linalg.norm(across)
        mean = mean + 0.1 * step
        mean /= np.linalg.norm(mean)
    return mean * sum(w * np.linalg.norm(v) for w, v in ts)


def model_stock(ts: Terms) -> Array:
    count = len(ts)
    cosines = [
        float((a * b).sum()) / np.linalg.norm(a) / np.linalg.norm(b)
        for i, (_, a) in enumerate(ts)
        for _, b in ts[:i]
    ]
    mean = sum(cosines) / len(cosines)
    ratio = min(1.0, max(0.0, count * mean / (1 + (count - 1) * mean)))
    return ratio * sum(w * v for w, v in ts) / count


def agreeing(kept: Sequence[tuple[float, Array]], by_weight: bool = False) -> Array:
    """The mean of entries whose sign is that of their sum, entry by entry."""
    result = np.zeros(kept[0][1].shape)
    for place in np.ndindex(result.shape):
        entries = [(w * v[place], abs(w) if by_weight else 1.0) for w, v in kept]
        sign = -1.0 if sum(e for e, _ in entries) < 0 else 1.0
        agree = [(e, share) for e, share in entries if e * sign > 0]
        if agree:
            result[place] = sum(e for e, _ in agree) / sum(share for _, share in agree)
    return result


def ties(ts: Terms) -> Array:
    return agreeing([(w, largest(v, 0.2)) for w, v in ts])


def ties_by_weight(ts: Terms) -> Array:
    return agreeing([(w, largest(v, 0.2)) for w, v in ts], by_weight=True)


def on_shared_directions(ts: Terms, merge: Callable[[Terms], Array], *, sized: bool) -> Array:
    """KnOTS: the SVD of all adapters side by side, and a merge of the parts of its right factor."""
    u, s, v = svd(np.hstack([v for _, v in ts]))
    inside = s[:, None] * v if sized else v
    parts = np.hsplit(inside, len(ts))
    found = merge([(w, part) for (w, _), part in zip(ts, parts, strict=True)])
    return u @ found if sized else (u * s) @ found


def ties_knots(ts: Terms) -> Array:
    return on_shared_directions(ts, ties, sized=False)


def ties_knots_sized(ts: Terms) -> Array:
    return on_shared_directions(ts, ties, sized=True)


def magnitude_prune(ts: Terms) -> Array:
    return sum(w * largest(v, 0.5) for w, v in ts)


def breadcrumbs(ts: Terms) -> Array:
    return sum(w * (largest(v, 0.91) - largest(v, 0.01)) for w, v in ts)


def sce(ts: Terms) -> Array:
    energies = np.array([np.linalg.norm(w * v) ** 2 for w, v in ts])
    shares = energies / energies.sum()
    result = np.zeros(ts[0][1].shape)
    for place in np.ndindex(result.shape):
        entries = [w * v[place] for w, v in ts]
        sign = -1.0 if sum(entries) < 0 else 1.0
        agree = [(e, c) for e, c in zip(entries, shares, strict=True) if e * sign > 0]
        if agree:
            result[place] = sum(e * c for e, c in agree) / sum(c for _, c in agree)
    return result


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-9 * s[0]
    return u[:, kept], s[kept], v[kept]


def polar(matrix: Array) -> Array:
    u, _, v = svd(matrix)
    return u @ v


def tsv_m(ts: Terms) -> Array:
    parts = [svd(w * v) for w, v in ts]
    u, v = polar(np.hstack([p[0] for p in parts])), polar(np.vstack([p[2] for p in parts]))
    return u @ np.diag(np.concatenate([p[1] for p in parts])) @ v


def iso_c(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return s.mean() * u @ v


def iso_cts(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    each = (len(s) - round(0.8 * len(s))) // len(ts)
    shared = len(s) - each * len(ts)
    us, ss, vs = [u[:, :shared]], [s[:shared]], [v[:shared]]
    for weight, values in ts:
        left, sizes, right = svd(weight * values - us[0] @ us[0].T @ (weight * values))
        us.append(left[:, :each])
        ss.append(sizes[:each])
        vs.append(right[:each])
    return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vs))


def cart(ts: Terms) -> Array:
    mean = sum(w * v for w, v in ts) / len(ts)
    result = mean.copy()
    for w, v in ts:
        left, sizes, right = svd(w * v - mean)
        result = result + left[:, :4] @ np.diag(sizes[:4]) @ right[:4]
    return result


def svc(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    result = np.zeros(ts[0][1].shape)
    for r in range(len(s)):
        whole = s[r] * v[r]
        times = [
            whole @ (u[:, r] @ (w * x)) / np.linalg.norm(u[:, r] @ (w * x)) ** 2 for w, x in ts
        ]
        result += len(ts) / sum(max(1.0, t) for t in times) * s[r] * np.outer(u[:, r], v[r])
    return result


def pico(ts: Terms) -> Array:
    """On the stacked canonical factors, as in the paper."""
    ups = []
    for _, values in ts:
        u, s, _ = svd(values)
        ups.append(u * np.sqrt(s))
    u, s, _ = svd(np.hstack(ups))
    factors = 1 / (1 + (len(ts) - 1) * s**2 / (s**2).sum())
    calibrated = [up + u @ np.diag(factors - 1) @ u.T @ up for up in ups]
    result = np.zeros(ts[0][1].shape)
    for (w, values), up in zip(ts, calibrated, strict=True):
        _, s, v = svd(values)
        result += w * up @ (np.sqrt(s)[:, None] * v)
    return result


def regmean_proxy(ts: Terms) -> Array:
    rows = svd(np.vstack([v for _, v in ts]))[2]
    ridge = 0.1 / len(rows) * rows.T @ rows
    grams = [v.T @ v / np.linalg.norm(v) ** 2 + ridge for _, v in ts]
    asked = sum(w * v @ g for (w, v), g in zip(ts, grams, strict=True))
    return asked @ np.linalg.pinv(sum(grams), rcond=1e-10)


def protect(ts: Terms) -> Array:
    result = ts[0][0] * ts[0][1]
    seen = ts[0][1]
    for w, v in ts[1:]:
        rows = svd(seen)[2]
        result = result + w * (v - v @ rows.T @ rows)
        seen = np.vstack([seen, v])
    return result


def compress_then_merge(ts: Terms) -> Array:
    rank = 4
    left = np.linalg.eigh(sum(v @ v.T / np.linalg.norm(v) ** 2 for _, v in ts))[1][:, -rank:]
    right = np.linalg.eigh(sum(v.T @ v / np.linalg.norm(v) ** 2 for _, v in ts))[1][:, -rank:]
    return left @ left.T @ sum(w * v for w, v in ts) @ right @ right.T


def spectral_clamp(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return u @ np.diag(np.minimum(s, 1.5 * np.median(s))) @ v


def geometric_median(ts: Terms) -> Array:
    return dense_merges.geometric_median([v for _, v in ts], [w for w, _ in ts])


def spectral_power(ts: Terms) -> Array:
    u, s, v = svd(sum(w * v for w, v in ts))
    return u @ np.diag(np.sqrt(s) * np.linalg.norm(s) / np.linalg.norm(np.sqrt(s))) @ v


DEFINITIONS: list[tuple[str, Callable[[Terms], Array], int, dict[str, Any]]] = [
    ("norm-equalised", norm_equalised, 3, {}),
    ("subtract", subtract, 3, {}),
    ("slerp", slerp, 2, {}),
    ("nuslerp", nuslerp, 2, {}),
    ("karcher", karcher, 3, {}),
    ("geometric-median", geometric_median, 3, {}),
    ("model-stock", model_stock, 3, {}),
    ("ties", ties, 3, {}),
    ("ties", ties_by_weight, 3, {"divide_by": "weights"}),
    ("ties-knots", ties_knots, 3, {}),
    ("ties-knots", ties_knots_sized, 3, {"entries": "sized"}),
    ("magnitude-prune", magnitude_prune, 3, {}),
    ("breadcrumbs", breadcrumbs, 3, {}),
    ("sce", sce, 3, {}),
    ("tsv-m", tsv_m, 3, {}),
    ("iso-c", iso_c, 3, {}),
    ("cosine-adaptive", partial(cosine_adaptive, "A"), 2, {}),
    ("cosine-adaptive", partial(cosine_adaptive, "B"), 2, {"likeness": "both"}),
    ("train-difference", train_difference, 2, {}),
    ("iso-cts", iso_cts, 3, {}),
    ("cart", cart, 3, {}),
    ("svc", svc, 3, {}),
    ("pico", pico, 3, {}),
    ("regmean-proxy", regmean_proxy, 3, {}),
    ("protect", protect, 3, {}),
    ("compress-then-merge", compress_then_merge, 3, {"shared_rank": 4}),
    ("spectral-clamp", spectral_clamp, 3, {"limit": 1.5}),
    ("spectral-power", spectral_power, 3, {}),
]
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

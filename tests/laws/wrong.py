"""Implementations with the errors that programs in the field really make; each must break laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loramerge.adapter import Adapter, Delta, Full, LowRank, Site
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.svd import decompose, decompose_dense
from loramerge.algebra.weights import Weight
from loramerge.files.tensors import ArrayTensor
from tests.builders.deltas import adapter, weighted

Inputs = Sequence[tuple[Adapter, float]]


def ours_mix(inputs: Inputs) -> Adapter:
    return mix([(a, Weight(w)) for a, w in inputs], threads=1)[0]


def ours_resize(a: Adapter, rank: int) -> Adapter:
    return resize(a, RankRule(rank=rank), threads=1)[0]


def _terms(inputs: Inputs) -> dict[Site, list[tuple[Delta, float]]]:
    found: dict[Site, list[tuple[Delta, float]]] = {}
    for a, w in inputs:
        for site, delta in a.deltas.items():
            if w:
                found.setdefault(site, []).append((delta, w))
    return found


def _made(deltas: dict[Site, Delta]) -> Adapter:
    return adapter({}).with_deltas(deltas)


def _bare(delta: Delta) -> tuple[Any, Any, float]:
    """Factors without the scale, and the scale."""
    up, down = delta.factors("float64")
    scale = delta.scale.value(delta.rank)  # type: ignore[attr-defined]
    return up / scale, down, scale


def _each(inputs: Inputs, join: Any) -> Adapter:
    """Join low-rank sites in a wrong way; everything else is mixed rightly."""
    right = ours_mix(inputs)
    wrong: dict[Site, Delta] = dict(right.deltas)
    for site, terms in _terms(inputs).items():
        if all(delta.rank is not None for delta, _ in terms):
            up, down = join([(delta.factors("float64"), w, delta) for delta, w in terms])
            wrong[site] = LowRank.from_arrays(up, down, terms[0][0].shape)
    return _made(wrong)


def ratio_on_both_factors(inputs: Inputs) -> Adapter:
    """up · w and down · w: the weight acts squared."""
    return _each(
        inputs,
        lambda terms: (
            np.concatenate([up * w for (up, _), w, _ in terms], axis=1),
            np.concatenate([down * w for (_, down), w, _ in terms]),
        ),
    )


def factors_added(inputs: Inputs) -> Adapter:
    """(Σ w up)(Σ w down): cross terms between the adapters."""

    def join(terms: Any) -> Any:
        rank = max(up.shape[1] for (up, _), _, _ in terms)
        ups = [np.pad(up * w, ((0, 0), (0, rank - up.shape[1]))) for (up, _), w, _ in terms]
        downs = [np.pad(d, ((0, rank - len(d)), (0, 0))) for (_, d), _, _ in terms]
        return sum(ups), sum(downs) / len(downs)

    return _each(inputs, join)


def first_alpha(inputs: Inputs) -> Adapter:
    """Concatenated factors beside the first file's alpha: the scale becomes alpha / Σr."""

    def join(terms: Any) -> Any:
        ups = [_bare(d)[0] * w for _, w, d in terms]
        downs = [_bare(d)[1] for _, _, d in terms]
        first = terms[0][2]
        up = np.concatenate(ups, axis=1)
        return up * (_bare(first)[2] * first.rank / up.shape[1]), np.concatenate(downs)

    return _each(inputs, join)


def double_scale(inputs: Inputs) -> Adapter:
    """The scale is folded into the product and applied once more (PEFT's svd)."""
    return _each(
        inputs,
        lambda terms: (
            np.concatenate([up * (w * _bare(d)[2]) for (up, _), w, d in terms], axis=1),
            np.concatenate([down for (_, down), _, _ in terms]),
        ),
    )


def sign_lost(inputs: Inputs) -> Adapter:
    """√|w| on both factors: a negative weight acts as a positive one."""
    return _each(
        inputs,
        lambda terms: (
            np.concatenate([up * abs(w) for (up, _), w, _ in terms], axis=1),
            np.concatenate([down for (_, down), _, _ in terms]),
        ),
    )


def _clamped(up: Any, down: Any) -> tuple[Any, Any]:
    high = np.quantile(np.abs(np.concatenate([up.ravel(), down.ravel()])), 0.99)
    return up.clip(-high, high), down.clip(-high, high)


def clamped(inputs: Inputs) -> Adapter:
    """The factors are clamped at their 0.99 quantile (kohya's extraction)."""
    return _each(
        inputs,
        lambda terms: _clamped(
            np.concatenate([up * w for (up, _), w, _ in terms], axis=1),
            np.concatenate([down for (_, down), _, _ in terms]),
        ),
    )


def ranks_added(inputs: Inputs) -> Adapter:
    """A concatenation that is never brought to its numerical rank: right, but too large."""
    return _each(
        inputs,
        lambda terms: (
            np.concatenate([up * w for (up, _), w, _ in terms], axis=1),
            np.concatenate([down for (_, down), _, _ in terms]),
        ),
    )


def one_rank_too_many(inputs: Inputs) -> Adapter:
    """A concatenation with a direction of zeros."""
    return _each(
        inputs,
        lambda terms: (
            np.pad(np.concatenate([up * w for (up, _), w, _ in terms], axis=1), ((0, 0), (0, 1))),
            np.pad(np.concatenate([down for (_, down), _, _ in terms]), ((0, 1), (0, 0))),
        ),
    )


def pruned(inputs: Inputs) -> Adapter:
    """Small entries are dropped, which depends on the coordinates."""
    right = ours_mix(inputs)
    deltas: dict[Site, Delta] = dict(right.deltas)
    for site, delta in right.deltas.items():
        if delta.rank is not None:
            whole = delta.dense().reshape(delta.flat_shape)
            kept = np.where(np.abs(whole) >= np.median(np.abs(whole)), whole, 0.0)
            deltas[site] = LowRank.from_arrays(kept, np.eye(kept.shape[1]), delta.shape)
    return _made(deltas)


def _shaken(inputs: Inputs, random: np.random.Generator) -> Adapter:
    """A mix of which each module is multiplied by a random number."""
    return _made(
        {
            site: Full.of(ArrayTensor(delta.dense() * random.random()), "diff")
            for site, delta in ours_mix(inputs).deltas.items()
        }
    )


def unseeded(inputs: Inputs) -> Adapter:
    """Random numbers of a generator that the clock seeds."""
    return _shaken(inputs, np.random.default_rng())


class SharedGenerator:
    """Random numbers of one generator, which go to whichever module comes first."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def __call__(self, inputs: Inputs) -> Adapter:
        return _shaken(inputs, self.random)


class Unscaled:
    """Entries are dropped and the others are not rescaled: half of the sum is left."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def seeded(self, seed: int) -> Unscaled:
        return Unscaled(seed)

    def __call__(self, inputs: Inputs) -> Adapter:
        random = np.random.default_rng(self.seed)
        deltas: dict[Site, Delta] = {}
        for site, delta in ours_mix(inputs).deltas.items():
            whole = delta.dense()
            kept = whole * (random.random(whole.shape) < 0.5)
            deltas[site] = Full.of(ArrayTensor(kept), "diff")
        return _made(deltas)


class SeedIgnored(Unscaled):
    """Every seed draws the same."""

    def seeded(self, seed: int) -> SeedIgnored:
        return SeedIgnored()


def last_sites_only(inputs: Inputs) -> Adapter:
    """Sites that the first adapter lacks are dropped silently."""
    right, first = ours_mix(inputs), inputs[0][0]
    return _made({s: d for s, d in right.deltas.items() if s in first.deltas})


def zero_counts(inputs: Inputs) -> Adapter:
    """Divides by the number of inputs, those of weight 0 too."""
    total = weighted(inputs)
    deltas: dict[Site, Delta] = {}
    for site, terms in _terms(inputs).items():
        shape = terms[0][0].shape
        if len(shape) == 1:
            deltas[site] = terms[0][0].scaled(1 / len(inputs))
        else:
            found = decompose_dense(total[site] / len(inputs))
            up, down = found.truncate(max(1, found.rank))
            deltas[site] = LowRank.from_arrays(up, down, shape)
    return _made(deltas)


# ---- resize


def _resized(a: Adapter, cut: Any) -> Adapter:
    deltas: dict[Site, Delta] = {}
    for site, delta in a.deltas.items():
        up, down = delta.factors("float64")
        deltas[site] = LowRank.from_arrays(*cut(up, down, delta), delta.shape)
    return _made(deltas)


def _best(up: Any, down: Any, rank: int) -> tuple[Any, Any]:
    found = decompose(up, down)
    return found.truncate(min(rank, found.rank))


def first_columns(a: Adapter, rank: int) -> Adapter:
    """Cuts the factors as they are stored; the result depends on the gauge."""
    return _resized(a, lambda up, down, _: (up[:, :rank], down[:rank]))


def one_side_only(a: Adapter, rank: int) -> Adapter:
    """Projects on the strongest columns of up, whatever down weighs them with."""

    def cut(up: Any, down: Any, delta: Any) -> Any:
        left = np.linalg.svd(up, full_matrices=False)[0][:, :rank]
        return left, left.T @ up @ down

    return _resized(a, cut)


def one_too_many(a: Adapter, rank: int) -> Adapter:
    return _resized(a, lambda up, down, _: _best(up, down, rank + 1))


def scale_twice(a: Adapter, rank: int) -> Adapter:
    def cut(up: Any, down: Any, delta: Any) -> Any:
        new_up, new_down = _best(up, down, rank)
        return new_up * delta.scale.value(delta.rank), new_down

    return _resized(a, cut)


def quantile(a: Adapter, rank: int) -> Adapter:
    return _resized(a, lambda up, down, _: _clamped(*_best(up, down, rank)))


def singular_values_squared(a: Adapter, rank: int) -> Adapter:
    """σ on both sides instead of √σ."""

    def cut(up: Any, down: Any, delta: Any) -> Any:
        new_up, new_down = _best(up, down, rank)
        sizes = np.linalg.norm(new_up, axis=0)
        return new_up * sizes, (new_down.T * sizes).T

    return _resized(a, cut)


def magnitudes_only(a: Adapter, rank: int) -> Adapter:
    """Re-ranks |scale|: the sign of a negative weight is lost."""

    def cut(up: Any, down: Any, delta: Any) -> Any:
        sign = -1.0 if delta.scale.value(delta.rank) < 0 else 1.0
        return _best(up * sign, down, rank)

    return _resized(a, cut)


def always_that_rank(a: Adapter, rank: int) -> Adapter:
    """Pads smaller modules up to the rank asked for."""

    def cut(up: Any, down: Any, delta: Any) -> Any:
        new_up, new_down = _best(up, down, rank)
        lack = rank - new_up.shape[1]
        return np.pad(new_up, ((0, 0), (0, lack))), np.pad(new_down, ((0, lack), (0, 0)))

    return _resized(a, cut)


def keeps_shrinking(a: Adapter, rank: int) -> Adapter:
    """Cuts to the energy that the rank happened to keep, so that a second pass cuts again."""

    def cut(up: Any, down: Any, delta: Any) -> Any:
        found = decompose(up, down)
        k = max(1, min(rank, found.rank) - 1) if min(up.shape[1], found.rank) <= rank else rank
        return found.truncate(k)

    return _resized(a, cut)

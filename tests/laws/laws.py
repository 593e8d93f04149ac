"""What any implementation of mix and resize must obey; each law takes the implementation.

A mix is a function of [(adapter, weight), …] that gives an adapter; a resize is one of
(adapter, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from loramerge.adapter import Adapter, Delta, LowRank
from loramerge.algebra.method import Method
from loramerge.algebra.mix import mix as mix_adapters
from loramerge.algebra.operator import Operator
from loramerge.algebra.weights import Weight
from loramerge.files.tensors import ArrayTensor
from tests.builders.deltas import (
    adapter,
    dense,
    distance,
    low_rank,
    norm,
    of_spectrum,
    rng,
    weighted,
)
from tests.laws.strategies import adapters, forall, inputs, low_ranks, seeds, weights

Mix = Callable[[Sequence[tuple[Adapter, float]]], Adapter]
Resize = Callable[[Adapter, int], Adapter]

ranks = st.integers(1, 6)


def close(a: Adapter, b: Adapter, relative: float) -> None:
    x, y = dense(a), dense(b)
    assert distance(x, y) <= relative * max(norm(x), norm(y), 1e-12)


def regauged(delta: Delta, seed: int, condition: float) -> Delta:
    """The same ΔW by other factors: `down → G down`, `up → up G⁻¹`, in float64."""
    if not isinstance(delta, LowRank):
        return delta
    up, down = (t.numpy().astype("float64") for t in (delta.up, delta.down))
    rank, random = delta.rank, rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((rank, rank)))[0] for _ in range(2))
    values = np.logspace(0, np.log10(condition), rank) if rank > 1 else np.array([condition])
    gauge, inverse = (left * values) @ right, (right.T / values) @ left.T
    new_up = (up.reshape(-1, rank) @ inverse).reshape(up.shape)
    new_down = (gauge @ down.reshape(rank, -1)).reshape(down.shape)
    return replace(delta, up=ArrayTensor(new_up), down=ArrayTensor(new_down))


def in_gauge(a: Adapter, seed: int, condition: float) -> Adapter:
    return a.with_deltas({s: regauged(d, seed, condition) for s, d in a.deltas.items()})


def scaled(a: Adapter, c: float) -> Adapter:
    return a.with_deltas({s: d.scaled(c) for s, d in a.deltas.items()})


# ---- mix


def mix_agrees_with_the_dense_oracle(mix: Mix) -> None:
    @forall(inputs(), examples=60)
    def check(terms: list[tuple[Adapter, float]]) -> None:
        expected = weighted(terms)
        scale = sum(abs(w) * norm(dense(a)) for a, w in terms)
        assert distance(dense(mix(terms)), expected) <= 2e-7 * scale


def mix_is_invariant_to_the_gauge(mix: Mix) -> None:
    @forall(low_ranks, low_ranks, seeds, st.sampled_from([1.0, 1e2, 1e4, 1e6]), examples=12)
    def check(a: Adapter, b: Adapter, seed: int, condition: float) -> None:
        # the first file's own rounding is not the gauge's matter
        plain = in_gauge(a, seed, 1.0)
        close(
            mix([(plain, 0.7), (b, 0.5)]),
            mix([(in_gauge(a, seed, condition), 0.7), (b, 0.5)]),
            1e-6,
        )


def mix_is_homogeneous(mix: Mix) -> None:
    @forall(inputs(), weights)
    def check(terms: list[tuple[Adapter, float]], c: float) -> None:
        together = mix([(a, c * w) for a, w in terms])
        expected = {s: c * v for s, v in dense(mix(terms)).items()}
        scale = sum(abs(c * w) * norm(dense(a)) for a, w in terms)
        assert distance(dense(together), expected) <= 4e-7 * scale


def mix_ignores_the_order_of_inputs(mix: Mix) -> None:
    @forall(inputs(), st.randoms(use_true_random=False))
    def check(terms: list[tuple[Adapter, float]], random: object) -> None:
        shuffled = list(terms)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        scale = sum(abs(w) * norm(dense(a)) for a, w in terms)
        assert distance(dense(mix(terms)), dense(mix(shuffled))) <= 4e-7 * scale


def weight_zero_is_neutral(mix: Mix) -> None:
    @forall(inputs(), adapters())
    def check(terms: list[tuple[Adapter, float]], other: Adapter) -> None:
        without, with_zero = mix(terms), mix([*terms, (other, 0.0)])
        assert list(dense(without)) == list(dense(with_zero))
        assert distance(dense(without), dense(with_zero)) == 0.0


def halves_make_a_whole(mix: Mix) -> None:
    @forall(adapters())
    def check(a: Adapter) -> None:
        close(mix([(a, 0.5), (a, 0.5)]), a, 4e-7)


def mix_is_linear(mix: Mix) -> None:
    """mix(a:u, b:v) + mix(a:x, b:y) = mix(a:u+x, b:v+y)."""

    @forall(adapters(), adapters(), st.lists(weights, min_size=4, max_size=4))
    def check(a: Adapter, b: Adapter, four: list[float]) -> None:
        u, v, x, y = four
        apart = mix([(mix([(a, u), (b, v)]), 1.0), (mix([(a, x), (b, y)]), 1.0)])
        expected = weighted([(a, u + x), (b, v + y)])
        scale = (abs(u) + abs(x)) * norm(dense(a)) + (abs(v) + abs(y)) * norm(dense(b))
        assert distance(dense(apart), expected) <= 1e-6 * scale


def opposites_cancel(mix: Mix) -> None:
    @forall(low_ranks, weights)
    def check(a: Adapter, w: float) -> None:
        other = adapter({"unet.other": low_rank((6, 6), 2, 7)})
        left = dense(mix([(a, w), (a, -w), (other, 1.0)]))
        assert distance(left, dense(other)) <= 4e-7 * (abs(w) * norm(dense(a)) + norm(dense(other)))


def mix_has_the_numerical_rank(mix: Mix) -> None:
    """Adapters that share directions do not add their ranks."""

    @forall(seeds, st.integers(1, 4), weights)
    def check(seed: int, rank: int, w: float) -> None:
        values = np.linspace(2.0, 1.0, rank)
        a = adapter({"unet.x": of_spectrum((12, 10), list(values), seed)})
        b = adapter({"unet.x": regauged(a.deltas[next(iter(a.deltas))], seed + 1, 10.0)})
        if abs(1 + w) > 1e-3:
            (delta,) = mix([(a, 1.0), (b, w)]).deltas.values()
            assert delta.rank == rank


def a_site_of_one_adapter_is_weighted(mix: Mix) -> None:
    @forall(adapters(), weights)
    def check(a: Adapter, w: float) -> None:
        other = adapter({"unet.other": low_rank((6, 6), 2, 7)})
        found = dense(mix([(other, 0.5), (a, w)]))
        expected = weighted([(other, 0.5), (a, w)])
        assert distance(found, expected) <= 2e-7 * norm(expected)


def mix_commutes_with_rotations(mix: Mix) -> None:
    @forall(seeds, weights, weights)
    def check(seed: int, u: float, v: float) -> None:
        random = rng(seed)
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for n in (9, 8))
        pair = [adapter({"unet.x": low_rank((9, 8), r, seed + r)}) for r in (2, 3)]

        def rotated(a: Adapter) -> Adapter:
            found = {}
            for site, delta in a.deltas.items():
                up, down = delta.factors("float64")
                found[site] = LowRank.from_arrays(left @ up, down @ right.T, delta.shape)
            return a.with_deltas(found)

        inputs = list(zip(pair, (u, v), strict=True))
        close(rotated(mix(inputs)), mix([(rotated(a), w) for a, w in inputs]), 1e-6)


def copies_count_once(mix: Mix) -> None:
    @forall(low_ranks, st.integers(2, 4), examples=8)
    def check(a: Adapter, count: int) -> None:
        close(mix([(a, 1.0)] * count), a, 1e-6)


def a_negative_weight_turns_its_adapter(mix: Mix) -> None:
    """mix(a:u, b:−v) = mix(a:u, (−b):v)."""

    @forall(low_ranks, low_ranks, weights, weights, examples=10)
    def check(a: Adapter, b: Adapter, u: float, v: float) -> None:
        x, y = mix([(a, u), (b, -v)]), mix([(a, u), (scaled(b, -1.0), v)])
        scale = abs(u) * norm(dense(a)) + abs(v) * norm(dense(b))
        assert distance(dense(x), dense(y)) <= 1e-6 * scale


def what_does_not_meet_is_added(mix: Mix) -> None:
    literal = getattr(mix, "literal", mix)

    @forall(seeds, st.sampled_from([0.3, 0.7, -0.5]), examples=8)
    def check(seed: int, v: float) -> None:
        random = rng(seed)
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for n in (9, 8))
        sizes = np.array([3.0, 2.0, 1.5, 1.0, 0.5])
        pair = [
            adapter({"unet.x": LowRank.from_arrays(left[:, one] * sizes[one], right[one], (9, 8))})
            for one in (slice(0, 2), slice(2, 5))
        ]
        inputs = [(pair[0], 1.0), (pair[1], v)]
        found, expected = dense(literal(inputs)), weighted(inputs)
        assert norm(found) > 1e-3 * norm(expected)
        factor = norm(expected) / norm(found)
        whole = {place: factor * value for place, value in found.items()}
        assert distance(whole, expected) <= 1e-6 * norm(expected)


def the_mean_over_seeds_is_the_sum(mix: Mix) -> None:
    pair = [adapter({"unet.x": low_rank((6, 5), 5, seed)}) for seed in (1, 2)]
    inputs = [(pair[0], 0.8), (pair[1], 0.5)]
    seeded = getattr(mix, "seeded", lambda seed: mix)
    found = [next(iter(dense(seeded(seed)(inputs)).values())) for seed in range(200)]
    (expected,) = weighted(inputs).values()
    off = np.linalg.norm(np.mean(found, axis=0) - expected)
    assert off <= 0.15 * np.linalg.norm(expected)
    assert np.linalg.norm(found[0] - expected) >= 0.2 * np.linalg.norm(expected)


def a_seed_chooses(mix: Mix) -> None:
    pair = [adapter({"unet.x": low_rank((9, 8), 3, seed)}) for seed in (1, 2)]
    inputs = [(pair[0], 0.8), (pair[1], 0.5)]
    seeded = getattr(mix, "seeded", lambda seed: mix)
    first, again, other = (dense(seeded(seed)(inputs)) for seed in (3, 3, 4))
    assert distance(first, again) == 0.0
    assert distance(first, other) > 1e-3 * norm(first)


def mix_keeps_to_the_rank_bound(mix: Mix) -> None:
    bound = getattr(mix, "rank_of", lambda ranks, shape: min(sum(ranks), *shape))

    @forall(low_ranks, low_ranks, weights, weights)
    def check(a: Adapter, b: Adapter, u: float, v: float) -> None:
        for place, delta in mix([(a, u), (b, v)]).deltas.items():
            before = [one.deltas[place] for one in (a, b) if place in one.deltas]
            ranks = [d.rank for d in before if d.rank is not None]
            most = sum(ranks) if len(ranks) == 1 else bound(ranks, before[0].flat_shape)
            assert delta.rank is not None and delta.rank <= most


def mix_repeats_to_the_byte(mix: Mix) -> None:
    threaded = getattr(mix, "threaded", mix)

    def stored(a: Adapter) -> list[bytes]:
        return [bytes(t.raw()) for d in a.deltas.values() for t in d.stored().values()]

    @forall(inputs(), examples=15)
    def check(terms: list[tuple[Adapter, float]]) -> None:
        assert stored(mix(terms)) == stored(mix(terms)) == stored(threaded(terms))


# name of `algebra.laws` → what holds an implementation to it
MIX_LAWS: Mapping[str, Callable[[Mix], None]] = {
    "sum": mix_agrees_with_the_dense_oracle,
    "gauge": mix_is_invariant_to_the_gauge,
    "homogeneous": mix_is_homogeneous,
    "order": mix_ignores_the_order_of_inputs,
    "zero": weight_zero_is_neutral,
    "alone": a_site_of_one_adapter_is_weighted,
    "halves": halves_make_a_whole,
    "duplicates": copies_count_once,
    "sign": a_negative_weight_turns_its_adapter,
    "orthogonal": what_does_not_meet_is_added,
    "expectation": the_mean_over_seeds_is_the_sum,
    "seeds": a_seed_chooses,
    "linear": mix_is_linear,
    "opposites": opposites_cancel,
    "numerical rank": mix_has_the_numerical_rank,
    "rotation": mix_commutes_with_rotations,
    "rank bound": mix_keeps_to_the_rank_bound,
    "repeatable": mix_repeats_to_the_byte,
}


@dataclass(frozen=True)
class OfOperator:
    """The mix by an operator with the defaults of its parameters, as the laws take it."""

    operator: Operator
    threads: int = 1
    scale: str | None = None
    seed: int | None = None

    def __call__(self, inputs: Sequence[tuple[Adapter, float]]) -> Adapter:
        weighted = [(a, Weight(w)) for a, w in inputs]
        settings = {} if self.seed is None else {"seed": self.seed}
        method = Method.of(self.operator, settings, self.scale)
        return mix_adapters(weighted, method=method, threads=self.threads)[0]

    @property
    def literal(self) -> OfOperator:
        """The same without a final scale."""
        return replace(self, scale="literal")

    def seeded(self, seed: int) -> OfOperator:
        """The same without a final scale, drawing from a seed."""
        return replace(self.literal, seed=seed)

    @property
    def threaded(self) -> OfOperator:
        return replace(self, threads=3)

    @property
    def rank_of(self) -> Callable[..., int]:
        return self.operator.rank_of


def check_operator(operator: Operator) -> None:
    """Hold an operator to every law it claims."""
    for name in operator.laws:
        MIX_LAWS[name](OfOperator(operator))


# ---- resize


def tails(a: Adapter, rank: int) -> tuple[float, float]:
    """(error of the best approximation of that rank, norm), over all matrices, by dense SVD."""
    lost = energy = 0.0
    for value in dense(a).values():
        s = np.linalg.svd(value, compute_uv=False)
        lost, energy = lost + float((s[rank:] ** 2).sum()), energy + float((s**2).sum())
    return lost**0.5, energy**0.5


def resize_is_optimal(resize: Resize) -> None:
    """Eckart–Young: the error is the tail."""

    @forall(low_ranks, ranks, examples=60)
    def check(a: Adapter, rank: int) -> None:
        best, size = tails(a, rank)
        error = distance(dense(a), dense(resize(a, rank)))
        assert error <= 1.0001 * best + 1e-6 * size
        assert error >= 0.9999 * best - 1e-6 * size


def resize_keeps_to_the_rank(resize: Resize) -> None:
    @forall(low_ranks, ranks)
    def check(a: Adapter, rank: int) -> None:
        small = resize(a, rank)
        for place, delta in small.deltas.items():
            before = a.deltas[place].rank
            assert delta.rank is not None and before is not None
            assert delta.rank <= min(rank, before)
            for role, stored in delta.stored().items():
                assert stored.shape[1 if role == "up" else 0] == delta.rank or role == "mid"


def resize_is_idempotent(resize: Resize) -> None:
    @forall(low_ranks, ranks)
    def check(a: Adapter, rank: int) -> None:
        once = resize(a, rank)
        if once.deltas:
            close(once, resize(once, rank), 1e-6)


def resize_is_invariant_to_the_gauge(resize: Resize) -> None:
    @forall(seeds, ranks, st.sampled_from([1.0, 1e2, 1e4, 1e6]))
    def check(seed: int, rank: int, condition: float) -> None:
        a = adapter(
            {
                "unet.a": of_spectrum((14, 11), [5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1], seed),
                "unet.c": of_spectrum((8, 3, 3, 3), [4.0, 2.0, 1.0, 0.5, 0.1], seed + 1),
            }
        )
        close(resize(a, rank), resize(in_gauge(a, seed, condition), rank), 1e-6)


def resize_is_homogeneous(resize: Resize) -> None:
    @forall(seeds, ranks, weights)
    def check(seed: int, rank: int, c: float) -> None:
        a = adapter({"unet.a": of_spectrum((14, 11), [5.0, 3.0, 2.0, 1.0, 0.5, 0.2], seed)})
        close(scaled(resize(a, rank), c), resize(scaled(a, c), rank), 1e-6)


def resize_commutes_with_transposition(resize: Resize) -> None:
    @forall(seeds, ranks)
    def check(seed: int, rank: int) -> None:
        delta = low_rank((14, 11), 7, seed, dtype="float64")
        up, down = delta.factors("float64")
        turned = LowRank.from_arrays(down.T, up.T, (11, 14))
        (x,) = dense(resize(adapter({"unet.a": delta}), rank)).values()
        (y,) = dense(resize(adapter({"unet.a": turned}), rank)).values()
        assert np.linalg.norm(x - y.T) <= 1e-6 * np.linalg.norm(x)


RESIZE_LAWS: tuple[Callable[[Resize], None], ...] = (
    resize_is_optimal,
    resize_keeps_to_the_rank,
    resize_is_idempotent,
    resize_is_invariant_to_the_gauge,
    resize_is_homogeneous,
    resize_commutes_with_transposition,
)

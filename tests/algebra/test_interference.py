"""The figures of `mix --explain` against the dense matrices, and for pairs whose figures are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, replace
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.algebra import interference as module
from loramerge.algebra.interference import Figures, Interference, interference
from loramerge.algebra.mix import mix
from loramerge.algebra.terms import terms_of
from loramerge.algebra.weights import Weight
from loramerge.events import Event, Progress
from tests.builders.deltas import adapter, full, low_rank

Inputs = list[tuple[Adapter, float]]
SHAPES = {
    "unet.down_blocks.0.x": (24, 16),
    "unet.down_blocks.1.x": (20, 32),
    "unet.mid_block.x": (9, 9),
}


def made(seed: int, rank: int = 3) -> Adapter:
    return adapter(
        {n: low_rank(shape, rank, seed + i) for i, (n, shape) in enumerate(SHAPES.items())}
    )


def explained(inputs: Inputs) -> Interference:
    weighted = [(a, Weight(w)) for a, w in inputs]
    result, _ = mix(weighted)
    return interference(terms_of(weighted), result, len(inputs), threads=1)


def spaces(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projectors onto the output and the input space."""
    u, s, vt = np.linalg.svd(matrix)
    rank = int((s > 1e-6 * s[0]).sum())
    return u[:, :rank] @ u[:, :rank].T, vt[:rank].T @ vt[:rank]


def test_the_figures_are_those_of_the_matrices() -> None:
    inputs: Inputs = [(made(1, 3), 0.7), (made(50, 5), -1.2)]
    a, b = ({s: w * d.dense() for s, d in x.deltas.items()} for x, w in inputs)
    found = explained(inputs)
    (pair,) = found.pairs
    flat = [np.concatenate([m.reshape(-1) for m in x.values()]) for x in (a, b)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert pair.cosine == pytest.approx(cosine, rel=1e-6) and pair.modules == 3
    energy = outputs = inputs_ = chance = 0.0
    for site in a:
        (left_a, right_a), (left_b, right_b) = spaces(a[site]), spaces(b[site])
        energy += float((a[site] ** 2).sum() + (b[site] ** 2).sum())
        outputs += float(((left_b @ a[site]) ** 2).sum() + ((left_a @ b[site]) ** 2).sum())
        inputs_ += float(((a[site] @ right_b) ** 2).sum() + ((b[site] @ right_a) ** 2).sum())
        ranks = (a[site] ** 2).sum() * 5 + (b[site] ** 2).sum() * 3
        chance += float(ranks) / a[site].shape[0]
    assert pair.outputs == pytest.approx(outputs / energy, rel=1e-6)
    assert pair.inputs == pytest.approx(inputs_ / energy, rel=1e-6)
    assert pair.outputs_by_chance == pytest.approx(chance / energy, rel=1e-6)
    assert [part.name for part in found.blocks] == [
        "unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block"
    ]  # fmt: skip
    assert found.total.inputs == pytest.approx([np.linalg.norm(x) for x in flat], rel=1e-6)
    assert found.total.result == pytest.approx(np.linalg.norm(flat[0] + flat[1]), rel=1e-6)


@pytest.mark.parametrize(("weight", "cosine", "ratio"), [(1.0, 1, math.sqrt(2)), (-1.0, -1, 0)])
def test_a_copy_shares_everything(weight: float, cosine: float, ratio: float) -> None:
    a = made(1)
    found = explained([(a, 1.0), (a, weight)])
    (pair,) = found.pairs
    assert (pair.cosine, pair.outputs, pair.inputs) == pytest.approx((cosine, 1, 1), abs=1e-6)
    assert found.total.ratio == pytest.approx(ratio, abs=1e-6)


def test_random_adapters_share_what_chance_gives() -> None:
    found = explained([(made(100 * n + 1), 1.0) for n in range(8)])
    assert len(found.pairs) == 28
    for name in ("outputs", "inputs"):
        measured = np.mean([getattr(pair, name) for pair in found.pairs])
        expected = np.mean([getattr(pair, f"{name}_by_chance") for pair in found.pairs])
        assert measured == pytest.approx(expected, rel=0.1), name
    assert found.total.ratio == pytest.approx(1, abs=0.1)


def test_full_differences_have_a_cosine_and_no_spaces() -> None:
    name = "unet.mid_block.x"
    a, b = (adapter({name: full((9, 9), seed)}) for seed in (1, 2))
    (pair,) = explained([(a, 1.0), (b, 1.0)]).pairs
    dense = [x.deltas[s].dense().reshape(-1) for x in (a, b) for s in x.deltas]
    expected = dense[0] @ dense[1] / np.linalg.norm(dense[0]) / np.linalg.norm(dense[1])
    assert pair.cosine == pytest.approx(expected, rel=1e-5)
    assert pair.outputs is None and pair.outputs_by_chance is None


def test_inputs_without_a_module_in_common() -> None:
    a = adapter({"unet.mid_block.x": low_rank((9, 9), 2, 1)})
    b = adapter({"unet.mid_block.y": low_rank((9, 9), 2, 2)})
    (pair,) = explained([(a, 1.0), (b, 1.0)]).pairs
    assert pair.modules == 0 and pair.cosine is None and pair.outputs is None


# ---- the norm of an exact sum, from inner products that are kept while weights change


def remembering() -> Callable[[Inputs], Interference]:
    """Return a function of inputs that keeps what no weight changes between its calls."""
    known: Figures = WeakKeyDictionary()

    def found(inputs: Inputs) -> Interference:
        terms = terms_of([(a, Weight(w)) for a, w in inputs])
        return interference(terms, 1.0, len(inputs), known=known, threads=1)

    return found


def without_cross_terms() -> Callable[[Inputs], Interference]:
    def found(inputs: Inputs) -> Interference:
        right = remembering()(inputs)
        return replace(right, total=replace(right.total, result=math.hypot(*right.total.inputs)))

    return found


def with_weights_once() -> Callable[[Inputs], Interference]:
    """Energies that grow with the weight and not with its square."""
    exact = remembering()
    return lambda inputs: exact([(a, math.copysign(math.sqrt(abs(w)), w)) for a, w in inputs])


def with_first_weights() -> Callable[[Inputs], Interference]:
    """A fault: the kept figures include the weights of the first call."""
    exact, kept = remembering(), list[float]()

    def found(inputs: Inputs) -> Interference:
        kept[:] = kept or [w for _, w in inputs]
        return exact([(a, w) for (a, _), w in zip(inputs, kept, strict=True)])

    return found


def by_module_alone() -> Callable[[Inputs], Interference]:
    """A fault: the figures of the first adapters are kept for all others."""
    exact, kept = remembering(), list[Adapter]()

    def found(inputs: Inputs) -> Interference:
        kept[:] = kept or [a for a, _ in inputs]
        return exact([(a, w) for a, (_, w) in zip(kept, inputs, strict=True)])

    return found


def without_signs() -> Callable[[Inputs], Interference]:
    exact = remembering()
    return lambda inputs: exact([(a, abs(w)) for a, w in inputs])


def keeps_what_weights_do_not_change(make: Callable[[], Callable[[Inputs], Interference]]) -> None:
    """Law: while weights and adapters change, every figure is that of mixing anew."""
    found, a, b, c = make(), made(1, 3), made(50, 5), made(90, 2)
    for inputs in (
        [(a, 0.7), (b, -1.2)],
        [(a, 0.3), (b, 0.9)],
        [(b, 0.6), (a, -2.0)],
        [(c, 2.0), (b, 0.5)],
        [(a, 1), (a, 0.5)],
    ):
        ours, expected = found(inputs), explained(inputs)
        assert ours.total.result == pytest.approx(expected.total.result, rel=1e-6)
        assert ours.total.inputs == pytest.approx(expected.total.inputs, rel=1e-9)
        for one, other in zip(ours.blocks, expected.blocks, strict=True):
            assert (one.name, one.result) == (other.name, pytest.approx(other.result, rel=1e-6))
        for one, other in zip(ours.pairs, expected.pairs, strict=True):
            assert astuple(one) == pytest.approx(astuple(other), rel=1e-9)


def test_kept_figures_are_those_of_mixing_anew() -> None:
    keeps_what_weights_do_not_change(remembering)


@pytest.mark.parametrize(
    "wrong",
    [without_cross_terms, with_weights_once, with_first_weights, by_module_alone, without_signs],
)
def test_wrong_figures_are_noticed(wrong: Callable[[], Callable[[Inputs], Interference]]) -> None:
    with pytest.raises(AssertionError):
        keeps_what_weights_do_not_change(wrong)


def test_a_further_weight_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spaces and the products of modules are computed once, and go with the adapters."""
    counted: list[int] = []
    compared = module._compared
    monkeypatch.setattr(module, "_compared", lambda pairs: (counted.append(1), compared(pairs))[1])
    found, a, b = remembering(), made(1), made(2)
    found([(a, 1.0), (b, 1.0)])
    assert len(counted) == len(SHAPES)
    found([(a, 0.3), (b, -2.0)])
    found([(b, 0.3), (a, -2.0)])  # nor does the other order
    assert len(counted) == len(SHAPES)
    found([(b, 0.3), (a, -2.0), (made(3), 1.0)])
    assert len(counted) == 2 * len(SHAPES)


def test_what_was_computed_before_a_stop_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slider that moves on stops the figures of before, and must not begin anew each time."""
    counted: list[int] = []
    compared = module._compared
    monkeypatch.setattr(module, "_compared", lambda pairs: (counted.append(1), compared(pairs))[1])
    known: Figures = WeakKeyDictionary()
    terms = terms_of([(made(1), Weight(1.0)), (made(2), Weight(1.0))])

    def stop(event: Event) -> None:
        assert isinstance(event, Progress)
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interference(terms, 1.0, 2, known=known, threads=1, notify=stop)
    first = len(counted)
    interference(terms, 1.0, 2, known=known, threads=1)
    assert len(counted) < first + len(SHAPES)

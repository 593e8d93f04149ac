"""LoHa, LoKr and sparse rests in mix and resize: exact sums, and what they are written as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, Delta, Scale
from loramerge.adapter.kinds import make_biases, make_weight
from loramerge.adapter.kinds.declaration import Stored
from loramerge.algebra.compare import compare
from loramerge.algebra.health import examine
from loramerge.algebra.mix import mix
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.algebra.weights import Weight
from loramerge.events import Event, Note
from loramerge.files.tensors import ArrayTensor
from tests.builders.deltas import adapter, low_rank, site
from tests.laws.laws import close

Array = np.ndarray[Any, Any]
SHAPE = (24, 36)


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def asked(parts: Mapping[str, Array], scale: Scale = Scale(1.0)) -> Stored:
    return Stored({role: ArrayTensor(v) for role, v in parts.items()}, lambda: scale, "m")


def made(parts: Mapping[str, Array], scale: Scale = Scale(1.0)) -> Delta:
    found = make_weight(asked(parts, scale))
    assert found is not None
    return found.delta


def loha(rank: int, seed: int = 0) -> Delta:
    out, inside = SHAPE
    sizes = {
        "w1_a": (out, rank),
        "w1_b": (rank, inside),
        "w2_a": (out, rank),
        "w2_b": (rank, inside),
    }
    return made({f"hada_{k}": values(*s, seed=seed + i) for i, (k, s) in enumerate(sizes.items())})


def lokr(rank: int, seed: int = 0) -> Delta:
    """(4, 6) ⊗ (6, 6), the second half factored; whole at rank 0."""
    first = values(4, 6, seed=seed)
    if not rank:
        return made({"lokr_w1": first, "lokr_w2": values(6, 6, seed=seed)})
    return made(
        {"lokr_w1": first, "lokr_w2_a": values(6, rank, seed=seed), "lokr_w2_b": values(rank, 6)}
    )


def sparse() -> Delta:
    return made(
        {"up": values(24, 2), "down": values(2, 36), "bias_values": values(3),
         "bias_indices": np.array([[0, 5, 23], [1, 1, 35]]), "bias_size": np.array(SHAPE)}
    )  # fmt: skip


DELTAS = {
    "loha": loha(2), "loha-large": loha(5, 3), "lokr": lokr(1), "lokr-whole": lokr(0),
    "sparse": sparse(), "lora": low_rank(SHAPE, 3, 9),
}  # fmt: skip


def of(delta: Delta) -> Adapter:
    return adapter({"unet.x": delta})


def dense(a: Adapter) -> Array:
    (delta,) = a.deltas.values()
    return delta.dense().reshape(SHAPE)


@pytest.mark.parametrize("second", DELTAS)
@pytest.mark.parametrize("first", DELTAS)
def test_a_mix_is_the_sum_and_takes_the_smaller_form(first: str, second: str) -> None:
    told: list[Event] = []
    a, b = DELTAS[first], DELTAS[second]
    inputs = [(of(a), Weight(0.7)), (of(b), Weight(-0.4))]
    mixed, _ = mix(inputs, threads=1, notify=told.append)
    expected = 0.7 * a.dense() - 0.4 * b.dense()
    assert np.linalg.norm(dense(mixed) - expected) < 1e-6 * np.linalg.norm(expected)
    (delta,) = mixed.deltas.values()
    size = sum(t.size for t in delta.stored().values())
    assert size <= SHAPE[0] * SHAPE[1]
    assert delta.kind in ("lora", "full")
    notes = [event.text for event in told if isinstance(event, Note)]
    if {first, second} != {"lora"}:
        (note,) = notes
        assert ("plain LoRA" if delta.kind == "lora" else "full differences") in note
    else:
        assert not notes


@pytest.mark.parametrize("name", DELTAS)
def test_an_adapter_alone_keeps_its_kind(name: str) -> None:
    delta = DELTAS[name]
    mixed, _ = mix([(of(delta), Weight(0.5))], threads=1)
    assert mixed.kinds() == {delta.kind: 1}
    assert np.allclose(dense(mixed), 0.5 * delta.dense(), rtol=1e-12)


@pytest.mark.parametrize("name", DELTAS)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_resize_is_the_best_of_its_rank(name: str, rank: int) -> None:
    delta = DELTAS[name]
    small, combined = resize(of(delta), RankRule(rank=rank), threads=1)
    (left,) = small.deltas.values()
    s = np.linalg.svd(delta.dense(), compute_uv=False)
    assert left.rank is not None and left.rank <= rank
    error = np.linalg.norm(left.dense() - delta.dense())
    assert error == pytest.approx(float(np.sqrt((s[rank:] ** 2).sum())), rel=1e-5, abs=1e-5 * s[0])
    assert combined.relative_error == pytest.approx(error / np.linalg.norm(s), rel=1e-4, abs=1e-6)


def test_the_kinds_are_homogeneous_and_their_sums_linear() -> None:
    for delta in DELTAS.values():
        other = of(low_rank(SHAPE, 2, 4))
        twice, _ = mix([(of(delta), Weight(1.4)), (other, Weight(0.6))], threads=1)
        once, _ = mix([(of(delta), Weight(0.7)), (other, Weight(0.3))], threads=1)
        close(twice, once.with_deltas({s: d.scaled(2.0) for s, d in once.deltas.items()}), 1e-6)


def test_another_kind_of_the_same_change_compares_as_equal() -> None:
    delta = DELTAS["loha"]
    mixed, _ = mix([(of(delta), Weight()), (of(low_rank(SHAPE, 1, 1)), Weight(1e-12))], threads=1)
    assert mixed.kinds() == {"lora": 1}
    assert compare(of(delta), mixed, threads=1).shared.distance < 1e-6
    found = examine(of(delta), threads=1)
    assert found.norm == pytest.approx(float(np.linalg.norm(delta.dense())), rel=1e-6)
    assert found.table[0]["rank"] == 2  # as the file counts


def test_a_bias_beside_factors_has_their_scale_and_mixes() -> None:
    parts = asked({"up": values(24, 2), "down": values(2, 36), "up_bias": values(24)})
    weight = make_weight(parts)
    (bias,) = make_biases(parts, weight)
    assert weight is not None and bias is not None
    assert np.allclose(bias.delta.dense(), 0.5 * values(24))
    a = adapter({"unet.x": weight.delta, "unet.x:bias": bias.delta})
    mixed, _ = mix([(a, Weight(2.0)), (a, Weight(1.0))], threads=1)
    got = mixed.deltas[site("unet.x:bias")]
    assert got.kind == "bias" and np.allclose(got.dense(), 1.5 * values(24))

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter, LowRank
from loramerge.algebra.outcome import Combined, SizeModel
from loramerge.algebra.ranks import RankRule
from loramerge.algebra.resize import resize
from loramerge.errors import AdapterError, NumericsError, UsageError
from tests.builders.deltas import (
    adapter,
    dense,
    distance,
    full,
    low_rank,
    norm,
    of_spectrum,
    replacement,
    site,
    tensor,
    tucker,
    written,
)

SPECTRUM = [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]


def sample() -> Adapter:
    return adapter(
        {
            "unet.a": of_spectrum((20, 30), SPECTRUM, 1),
            "unet.b": of_spectrum((30, 9), [3.0, 2.9, 2.8, 0.1], 2),
            "unet.c": of_spectrum((12, 4, 3, 3), SPECTRUM, 3),
            "text_encoder.d": of_spectrum((8, 8), [1e-3], 4),
        }
    )


RULES = [
    RankRule(rank=2),
    RankRule(rank=4, conv_rank=1),
    RankRule(energy=0.9),
    RankRule(ratio=5.0),
    RankRule(cumulative=0.8),
    RankRule(rank=3, energy=0.99),
    RankRule(max_error=0.2),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_reported_errors_are_the_measured_ones(rule: RankRule) -> None:
    a = sample()
    small, combined = resize(a, rule, threads=1)
    before, after = dense(a), dense(small)
    assert combined.lossy
    for outcome in combined.outcomes:
        one = {outcome.site: before[outcome.site]}
        kept = {outcome.site: after[outcome.site]} if outcome.site in after else {}
        assert outcome.energy == pytest.approx(norm(one) ** 2, rel=1e-9)
        assert math.sqrt(outcome.lost) == pytest.approx(distance(one, kept), rel=1e-6, abs=1e-9)
        assert outcome.relative_error == pytest.approx(
            distance(one, kept) / norm(one), rel=1e-6, abs=1e-9
        )
    error = distance(before, after) / norm(before)
    assert combined.relative_error == pytest.approx(error, rel=1e-6)
    assert combined.norm_kept == pytest.approx(norm(after) / norm(before), rel=1e-6)
    worst = max(combined.outcomes, key=lambda o: o.relative_error)
    assert combined.worst == (worst.site.name, worst.relative_error)


def wrong_report(combined: Combined, how: str) -> float:
    kept = [o for o in combined.outcomes if not math.isnan(o.energy)]
    lost, energy = sum(o.lost for o in kept), sum(o.energy for o in kept)
    return {
        "squared": lost / energy,
        "one minus norm kept": 1 - combined.norm_kept,
        "mean over modules": sum(o.relative_error for o in kept) / len(kept),
    }[how]


@pytest.mark.parametrize("how", ["squared", "one minus norm kept", "mean over modules"])
def test_other_figures_would_be_noticed(how: str) -> None:
    a = sample()
    small, combined = resize(a, RankRule(rank=2), threads=1)
    error = distance(dense(a), dense(small)) / norm(dense(a))
    assert wrong_report(combined, how) != pytest.approx(error, rel=1e-2)


def test_a_dense_difference_becomes_low_rank() -> None:
    a = adapter({"unet.x": full((12, 9), 1), "unet.c": full((6, 4, 3, 3), 2)})
    small, combined = resize(a, RankRule(rank=3), threads=1)
    for place, delta in small.deltas.items():
        (value,) = dense(adapter({}).with_deltas({place: a.deltas[place]})).values()
        s = np.linalg.svd(value, compute_uv=False)
        got = delta.dense().reshape(delta.flat_shape)
        assert delta.rank == 3
        assert np.linalg.norm(got - value) == pytest.approx(np.linalg.norm(s[3:]))
    assert [o.rank_before for o in combined.outcomes] == [None, None]


def test_tucker_becomes_lora_only_where_it_is_cut() -> None:
    a = adapter({"unet.c": tucker((6, 4, 3, 3), 4, 1)})
    assert resize(a, RankRule(rank=4), threads=1)[0].kinds() == {"tucker": 1}
    assert resize(a, RankRule(rank=2), threads=1)[0].kinds() == {"lora": 1}


def test_modules_below_the_rank_stay_unchanged() -> None:
    a = adapter(
        {"unet.x": low_rank((9, 8), 2, 1, dtype="float16"), "unet.y": low_rank((9, 8), 5, 2)}
    )
    small, combined = resize(a, RankRule(rank=3), threads=1)
    assert small.deltas[site("unet.x")] is a.deltas[site("unet.x")]
    assert combined.outcomes[0].lost == 0.0


def test_vectors_and_replacements_are_carried_over() -> None:
    a = adapter(
        {
            "unet.x": low_rank((9, 8), 4, 1),
            "unet.n": full((5,), 1, "w_norm"),
            "unet.r": replacement((4, 3), 1),
        }
    )
    small, combined = resize(a, RankRule(rank=1), threads=1)
    assert small.kinds() == {"lora": 1, "norm": 1, "set": 1}
    assert small.deltas[site("unet.r")] is a.deltas[site("unet.r")]
    (value,) = (v for s, v in dense(adapter({"unet.x": a.deltas[site("unet.x")]})).items())
    s = np.linalg.svd(value, compute_uv=False)
    assert combined.relative_error == pytest.approx(np.linalg.norm(s[1:]) / np.linalg.norm(s))


def test_dead_directions_are_dropped() -> None:
    up, down = np.ones((8, 4)), np.zeros((4, 6))
    down[0] = 1.0
    down[1] = 1.0
    dead = LowRank(tensor(up), tensor(down), (8, 6))
    small, combined = resize(adapter({"unet.x": dead}), RankRule(rank=3), threads=1)
    (delta,) = small.deltas.values()
    assert delta.rank == 1
    assert not combined.lossy
    assert np.allclose(delta.dense(), 2.0)


def test_zero_deltas_are_left_out_and_counted() -> None:
    zero = LowRank(tensor(np.zeros((6, 2))), tensor(np.ones((2, 5))), (6, 5))
    a = adapter({"unet.x": zero, "unet.y": low_rank((6, 5), 3, 1)})
    small, combined = resize(a, RankRule(rank=2), threads=1)
    assert combined.left_out == ["unet.x"]
    assert list(small.deltas) == [site("unet.y")]


def test_all_zero() -> None:
    zero = LowRank(tensor(np.zeros((6, 2))), tensor(np.ones((2, 5))), (6, 5))
    for rule in RULES:
        small, combined = resize(adapter({"unet.x": zero}), rule, threads=1)
        assert small.deltas == {}
        assert combined.relative_error == 0.0


def test_dtype_stays() -> None:
    a = adapter({"unet.x": low_rank((9, 8), 4, 1, dtype="float16")})
    assert resize(a, RankRule(rank=2), threads=1)[0].dtype == "F16"


def test_max_error_beside_another_criterion_refuses() -> None:
    a = sample()
    _, combined = resize(a, RankRule(rank=2), threads=1)
    error = combined.relative_error
    resize(a, RankRule(rank=2, max_error=error * 1.01), threads=1)
    with pytest.raises(NumericsError, match="limit max_error") as caught:
        resize(a, RankRule(rank=2, max_error=error * 0.99), threads=1)
    assert caught.value.exit_code == 7
    assert "keep a higher rank" in str(caught.value)


def test_max_module_error_names_the_worst_module() -> None:
    a = sample()
    _, combined = resize(a, RankRule(rank=2), threads=1)
    assert combined.worst is not None
    name, error = combined.worst
    assert name == "unet.b"
    resize(a, RankRule(rank=2, max_module_error=error * 1.01), threads=1)
    with pytest.raises(NumericsError, match="limit max_module_error") as caught:
        resize(a, RankRule(rank=2, max_module_error=error * 0.99), threads=1)
    assert caught.value.module == "unet.b"


@pytest.mark.parametrize("limit", [0.001, 0.05, 0.3, 0.7, 1.0])
def test_max_error_alone_chooses_the_ranks(limit: float) -> None:
    a = sample()
    small, combined = resize(a, RankRule(max_error=limit), threads=1)
    measured = distance(dense(a), dense(small)) / norm(dense(a))
    assert measured <= limit * (1 + 1e-6)
    assert combined.relative_error == pytest.approx(measured, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_max_size_is_kept_on_disk(tmp_path: Path, share: float) -> None:
    a = sample()
    whole = len(written(a, tmp_path / "whole.safetensors", "F32"))

    def exact(ranks: Any) -> int:
        probe = a.with_deltas(
            {
                s: LowRank.from_arrays(
                    np.zeros((d.shape[0], ranks[s])), np.zeros((ranks[s], d.flat_shape[1])), d.shape
                )
                for s, d in a.deltas.items()
                if ranks.get(s)
            }
        )
        return len(written(probe, tmp_path / "probe.safetensors", "F32"))

    budget = int(whole * share)
    sizes = SizeModel(exact, itemsize=4, first=lambda _: 250)
    small, combined = resize(a, RankRule(max_size=budget), sizes=sizes, threads=1)
    assert len(written(small, tmp_path / "small.safetensors", "F32")) <= budget
    assert 0 < combined.relative_error < 1
    with pytest.raises(UsageError, match="cannot be that small"):
        resize(a, RankRule(max_size=10), sizes=sizes, threads=1)


def test_a_cap_beside_max_size_and_max_error() -> None:
    a = sample()
    sizes = SizeModel(lambda ranks: 100 * sum(ranks.values()), 4, lambda _: 0)
    small, _ = resize(a, RankRule(max_size=100_000, rank=2), sizes=sizes, threads=1)
    assert max(small.ranks()) == 2


def test_a_resize_without_a_rank_option_is_refused() -> None:
    with pytest.raises(UsageError, match="a rank option"):
        resize(sample(), RankRule())
    with pytest.raises(UsageError, match="a rank option"):
        resize(sample(), RankRule(max_module_error=0.1))


def test_an_empty_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="no tensor"):
        resize(adapter({}), RankRule(rank=1))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_bytes_do_not_depend_on_threads(tmp_path: Path, rule: RankRule) -> None:
    results = {
        written(resize(sample(), rule, threads=threads)[0], tmp_path / f"{threads}.safetensors")
        for threads in (1, 2, 4)
    }
    assert len(results) == 1


def test_nan_names_the_module_wherever_ranks_are_chosen() -> None:
    broken = LowRank(tensor(np.full((6, 2), np.nan)), tensor(np.ones((2, 5))), (6, 5))
    a = adapter({"unet.fine": low_rank((6, 5), 2), "unet.x": broken})
    for rule in RULES:
        with pytest.raises(NumericsError) as caught:
            resize(a, rule, threads=2)
        assert caught.value.module == "unet.x"

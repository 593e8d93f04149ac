"""The part of a change that is left after rounding, compared with a dense computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.stream.bake import survey
from loramerge.stream.plan import plan_bake
from loramerge.stream.survival import Survival
from tests.builders.baking import Inputs, bake_into, everything, read_all
from tests.builders.bases import (
    Base,
    adapter_for,
    asked,
    folder,
    single,
    unet_alone,
)


def check_survival(base: Base, inputs: Inputs, output: Path, found: list[Survival]) -> None:
    change, expected = asked(base.weights, inputs), base.weights
    before, after = base.tensors(expected), read_all(output)
    # which parameter each element of each file is
    owners = base.tensors(
        {k: np.full(v.shape, -1 - i) for i, (k, v) in enumerate(expected.items())}
    )
    keys, written = list(expected), {}
    for file, tensors in after.items():
        for name, array in tensors.items():
            owner = owners[file][name]
            for i in np.unique(owner[owner < 0]).astype(int):
                mask = owner == i
                gap = array[mask].astype("float64") - before[file][name][mask].astype("float64")
                written[keys[-1 - i]] = gap
    by_name = {s.module: s for s in found}
    for key, value in change.items():
        module = key.removesuffix(".weight")
        one = by_name[module]
        w = expected[key].astype("float64")
        shape = value.shape
        got = written[key]
        flat = value.T.reshape(-1) if module.endswith("text_projection") else value.reshape(-1)
        assert got.size == np.prod(shape)
        assert one.asked == pytest.approx(float((value**2).sum()), rel=1e-4)
        assert one.along == pytest.approx(float((got * flat).sum()), rel=1e-3, abs=1e-4 * one.asked)
        assert one.error == pytest.approx(
            float(((got - flat) ** 2).sum()), rel=1e-3, abs=1e-9 * float((w**2).sum())
        )
        assert one.base == pytest.approx(float((w**2).sum()), rel=1e-4)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.parametrize("size", [0.2, 0.002])
def test_survival_is_the_dense_one(tmp_path: Path, dtype: str, size: float) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "", dtype)
    a = adapter_for("sd15", only=lambda n: n.startswith("unet.mid_block"), scale=size)
    output = tmp_path / "out.safetensors"
    found = bake_into(base, [(a, 1.0)], output)
    check_survival(base, [(a, 1.0)], output, found)
    total = sum(s.along for s in found) / sum(s.asked for s in found)
    if dtype == "F32":
        assert total == pytest.approx(1.0, abs=1e-4)
    elif size == 0.002:
        assert total < 0.75 if dtype == "BF16" else total < 0.1
    if dtype == "F8_E4M3" and size == 0.002:
        # in expectation everything survives stochastic rounding
        lucky = bake_into(base, [(a, 1.0)], tmp_path / "lucky.safetensors", seed=1)
        check_survival(base, [(a, 1.0)], tmp_path / "lucky.safetensors", lucky)
        assert sum(s.along for s in lucky) / sum(s.asked for s in lucky) == pytest.approx(
            1, abs=0.3
        )


def test_survival_of_fused_rows_and_transposed(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl", "BF16")
    names = ("layers.3.self_attn.q_proj", "layers.3.self_attn.v_proj", "text_projection")
    a = adapter_for("sdxl", only=lambda n: n.startswith("text_encoder_2") and n.endswith(names))
    assert len(a.deltas) == 3
    found = bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    check_survival(base, [(a, 1.0)], tmp_path / "out.safetensors", found)


@pytest.mark.long_tail(keep=1)
@pytest.mark.parametrize("seed", [None, 3])
def test_a_survey_finds_what_a_bake_does_and_writes_nothing(
    tmp_path: Path, seed: int | None
) -> None:
    base = folder(tmp_path / "base", "sdxl", "BF16")
    a = everything("sdxl")
    found = survey(plan_bake(open_checkpoint(base.path), [(a, Weight())]), seed=seed, threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert found == bake_into(base, [(a, 1.0)], tmp_path / "out", seed=seed)


def test_survival_of_nothing() -> None:
    nothing = Survival("m", "t", 0.0, 0.0, 0.0, 1.0)
    assert (nothing.survived, nothing.relative_error) == (1.0, 0.0)
    half = Survival("m", "t", 4.0, 2.0, 1.0, 1.0)
    assert (half.survived, half.relative_error) == (0.5, 0.5)

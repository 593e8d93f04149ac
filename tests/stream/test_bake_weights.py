"""Laws of a bake: weights, opposites, replacements, and a mix before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.algebra.mix import mix
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    UsageError,
)
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.baking import Inputs, assert_baked, bake_into, everything
from tests.builders.bases import (
    adapter_for,
    folder,
    modules,
    read_safetensors,
    single,
    ulp,
)
from tests.builders.deltas import adapter, replacement, site
from tests.tail import tail


def test_weight_zero_and_negative_weights(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a, b = adapter_for("sd15", seed=1), adapter_for("sd15", seed=2)
    bake_into(base, [(a, -0.7), (b, 0.0)], tmp_path / "a.safetensors")
    bake_into(base, [(a, -0.7)], tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert_baked(base, [(a, -0.7)], tmp_path / "a.safetensors", "F32")
    with pytest.raises(UsageError, match="nothing would change"):
        bake_into(base, [(a, 0.0)], tmp_path / "c.safetensors")


def test_weights_per_component(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sdxl")
    a = adapter_for("sdxl")
    weight = Weight(0.5, {"text_encoder": 0.0, "text_encoder_2": -1.0})
    plan = plan_bake(open_checkpoint(base.path), [(a, weight)])
    bake(plan, tmp_path / "out", threads=1)
    scaled = a.with_deltas({s: d.scaled(weight.of(s)) for s, d in a.deltas.items() if weight.of(s)})
    assert_baked(base, [(scaled, 1.0)], tmp_path / "out", "F32")


def test_an_opposite_takes_it_back(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    a = adapter_for("sd15")
    bake_into(base, [(a, 1.0)], tmp_path / "there.safetensors")
    bake_into(tmp_path / "there.safetensors", [(a, -1.0)], tmp_path / "back.safetensors")
    before, after = (read_safetensors(p)[0] for p in (base.path, tmp_path / "back.safetensors"))
    for name, old in before.items():
        assert np.allclose(old.astype("float64"), after[name].astype("float64"), atol=1e-6), name


def test_replacements(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15")
    shape = modules("sd15")["unet.conv_in"].shape
    whole = adapter({"unet.conv_in": replacement(shape, 3)}, families=["sd15"])
    bake_into(base, [(whole, 1.0)], tmp_path / "whole.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    after = read_safetensors(tmp_path / "whole.safetensors")[0][name]
    value = whole.deltas[site("unet.conv_in")].stored()["set_weight"].numpy()
    assert np.allclose(after, value, atol=1e-6)
    # halfway, beside a LoRA: both are evaluated at the unmodified weight
    inputs: Inputs = [(adapter_for("sd15"), 1.0), (whole, 0.5)]
    bake_into(base, inputs, tmp_path / "half.safetensors")
    assert_baked(base, inputs, tmp_path / "half.safetensors", "F32")


@pytest.mark.parametrize("dtype", ["F16", tail("F32"), tail("BF16")])
def test_baking_a_mix_is_baking_one_after_the_other(tmp_path: Path, dtype: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21", dtype)
    a, b = adapter_for("sd21", seed=1), everything("sd21")
    both, _ = mix([(a, Weight(0.7)), (b, Weight(-0.4))], threads=1)
    bake_into(base, [(both, 1.0)], tmp_path / "mixed.safetensors")
    bake_into(base, [(a, 0.7)], tmp_path / "once.safetensors")
    bake_into(tmp_path / "once.safetensors", [(b, -0.4)], tmp_path / "twice.safetensors")
    bake_into(base, [(a, 0.7), (b, -0.4)], tmp_path / "together.safetensors")
    mixed, twice, together = (
        read_safetensors(tmp_path / f"{n}.safetensors")[0] for n in ("mixed", "twice", "together")
    )
    once = read_safetensors(tmp_path / "once.safetensors")[0]
    for name, array in mixed.items():
        x, y, z = (t.astype("float64") for t in (array, twice[name], together[name]))
        if dtype == "F32":
            assert np.allclose(x, y, atol=1e-6), name
            assert np.allclose(x, z, atol=1e-6), name
        else:
            # what the first baking rounded may have been larger than what is left
            scale = np.maximum(np.abs(x), np.abs(once[name].astype("float64")))
            assert (np.abs(x - y) <= 2 * ulp(scale, dtype)).all(), name
            assert (np.abs(x - z) <= ulp(x, dtype)).all(), name

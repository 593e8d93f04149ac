"""The rows of fused and transposed tensors that a bake changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.stream import rows as stream_rows
from tests.builders.baking import Inputs, assert_baked, bake_into, everything, same_bytes
from tests.builders.bases import (
    adapter_for,
    read_safetensors,
    single,
    write_safetensors,
)
from tests.builders.deltas import adapter, full, low_rank


def test_small_blocks_cut_fused_tensors_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block borders that fall inside queries, keys or values."""
    base = single(tmp_path / "base.safetensors", "sd21")
    inputs: Inputs = [(everything("sd21"), 1.0), (adapter_for("sd21", seed=4), -0.5)]
    for elements in (7, 100):
        monkeypatch.setattr(stream_rows, "BLOCK_ELEMENTS", elements)
        output = tmp_path / f"out{elements}.safetensors"
        bake_into(base, inputs, output)
        assert_baked(base, inputs, output, "F32")


@pytest.mark.long_tail(keep=3)
@pytest.mark.parametrize("which", ["q", "k", "v", "qv"])
@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_rows_of_a_fused_tensor(tmp_path: Path, which: str, parameter: str) -> None:
    base = single(tmp_path / "base.safetensors", "sd21")
    layer = "text_encoder.text_model.encoder.layers.5.self_attn"
    role, shape = ("diff", (14, 14)) if parameter == "weight" else ("diff_b", (14,))
    a = adapter(
        {
            f"{layer}.{x}_proj" + (":bias" if parameter == "bias" else ""): full(shape, i, role)
            for i, x in enumerate(which)
        },
        families=["sd21"],
    )
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert assert_baked(base, [(a, 1.0)], tmp_path / "out.safetensors", "F32") == 1
    name = f"cond_stage_model.model.transformer.resblocks.5.attn.in_proj_{parameter}"
    before, after = (
        read_safetensors(p)[0][name] for p in (base.path, tmp_path / "out.safetensors")
    )
    for i, x in enumerate("qkv"):
        rows = slice(14 * i, 14 * (i + 1))
        assert same_bytes(before[rows], after[rows]) == (x not in which)


def test_the_transposed_projection(tmp_path: Path) -> None:
    """Square on big models, so that a forgotten transposition would not be noticed by shapes."""
    base = single(tmp_path / "base.safetensors", "sdxl")
    delta = low_rank((8, 8), 2, 3)
    a = adapter({"text_encoder_2.text_projection": delta}, families=["sdxl"])
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    name = "conditioner.embedders.1.model.text_projection"
    before, after = (
        read_safetensors(p)[0][name] for p in (base.path, tmp_path / "out.safetensors")
    )
    assert np.allclose(after - before, delta.dense().T, atol=1e-6)
    assert not np.allclose(after - before, delta.dense(), atol=1e-2)


def test_a_projection_that_is_not_square(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sdxl-refiner")
    deltas = {"text_encoder_2.text_projection": low_rank((6, 8), 2, 3)}
    inputs = [(adapter(deltas, families=["sdxl-refiner"]), 1.0)] * 2
    bake_into(base, inputs, tmp_path / "out.safetensors")
    assert_baked(base, inputs, tmp_path / "out.safetensors", "F32")


def test_rows_without_a_delta_keep_their_bits(tmp_path: Path) -> None:
    """Zeros keep their sign in the rows of a fused tensor that no delta touches."""
    base = single(tmp_path / "base.safetensors", "sd21")
    tensors = read_safetensors(base.path)[0]
    fused = next(name for name in tensors if name.endswith("in_proj_weight"))
    tensors[fused] = np.full_like(tensors[fused], -0.0)
    write_safetensors(base.path, tensors)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    a = adapter_for("sd21", only=lambda n: n == name)
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    after = read_safetensors(tmp_path / "out.safetensors")[0][fused]
    third = len(after) // 3
    assert after[:third].any() and np.signbit(after[third:]).all()

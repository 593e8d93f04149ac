"""A merge that cannot be right is refused, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loramerge.errors import (
    CorruptFile,
    FamilyError,
    FormatError,
    NumericsError,
    OutputExists,
    ShapeError,
    UsageError,
)
from tests.builders import small_models
from tests.builders.bases import (
    read_safetensors,
    unet_alone,
    write_safetensors,
)
from tests.stream.merges import merged, refused


def test_other_inputs_are_refused(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    output = tmp_path / "out"
    refused(UsageError, "must sum to 1", output, (a, 0.5), (b, 0.6))
    refused(UsageError, "must sum to 1", output, (a, 1.0), (b, 1.0))
    refused(UsageError, "works on low-rank factors", output, (a, 1.0), (b, 1.0), base=base,
            method="tsv-m")  # fmt: skip
    refused(UsageError, "combines changes of a base", output, (a, 0.5), (b, 0.5), method="ties")
    refused(UsageError, "not defined for this number", output, (a, 0.4), (b, 0.3), (base, 0.3),
            method="slerp")  # fmt: skip
    with pytest.raises(OutputExists):
        merged(a, (a, 0.5), (b, 0.5))


def test_a_model_with_nan_is_named(three: list[Path], tmp_path: Path) -> None:
    base, a, b = three
    broken = small_models.read(b)
    broken["lm_head.weight"] = broken["lm_head.weight"].copy()
    broken["lm_head.weight"][3, 3] = np.nan
    path = small_models.write(tmp_path / "broken", broken)
    for method in ("linear", "ties", "slerp"):  # TIES would drop it
        with pytest.raises(NumericsError) as caught:
            merged(tmp_path / "out", (a, 0.5), (path, 0.5), base=base, method=method)
        assert caught.value.module == "lm_head.weight" and "broken" in str(caught.value.file)
        assert not (tmp_path / "out").exists()


def test_nan_in_a_tensor_that_is_copied(tmp_path: Path) -> None:
    a = unet_alone(tmp_path / "a.safetensors", "sd15", "model.diffusion_model.")
    tensors, _ = read_safetensors(a.path)
    tensors["first_stage_model.decoder.bias"] = np.array([np.nan], "float32")
    write_safetensors(tmp_path / "b.safetensors", tensors)
    two = ((tmp_path / "b.safetensors", 0.5), (a.path, 0.5))
    refused(NumericsError, "nothing is added", tmp_path / "out.safetensors", *two)
    merged(tmp_path / "out.safetensors", *two, allow_nonfinite=True)
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    assert np.isnan(got["first_stage_model.decoder.bias"]).all()


def test_what_does_not_fit_the_type(three: list[Path], tmp_path: Path) -> None:
    base, a, _ = three
    refused(NumericsError, "do not fit float16", tmp_path / "out", (a, 1.0), (a, 1e7), base=base)


def test_a_shard_that_is_cut(three: list[Path], tmp_path: Path) -> None:
    _, a, b = three
    whole = (b / small_models.FILE).read_bytes()
    (b / small_models.FILE).write_bytes(whole[:-10])
    refused(CorruptFile, "shorter|cut|truncated|ends|bytes", tmp_path / "out", (a, 0.5), (b, 0.5))


def test_another_family_and_other_shapes(three: list[Path], tmp_path: Path) -> None:
    _, a, _ = three
    unet = unet_alone(tmp_path / "unet.safetensors", "sd15", "model.diffusion_model.")
    refused(FamilyError, "different families", tmp_path / "out", (a, 0.5), (unet.path, 0.5))
    other = small_models.read(a)
    other["lm_head.weight"] = other["lm_head.weight"][:30]
    path = small_models.write(tmp_path / "cut", other)
    refused(ShapeError, "differ in shape", tmp_path / "out", (a, 0.5), (path, 0.5))


def test_quantised_weights_are_refused(three: list[Path], tmp_path: Path) -> None:
    _, a, _ = three
    other = small_models.read(a)
    other["lm_head.weight"] = np.zeros(other["lm_head.weight"].shape, "int8")
    path = small_models.write(tmp_path / "whole", other)
    refused(FormatError, "are quantised", tmp_path / "out", (a, 0.5), (path, 0.5))


def test_averages_are_left_out_and_constants_kept(tmp_path: Path) -> None:
    a = unet_alone(tmp_path / "a.safetensors", "sd15", "model.diffusion_model.")
    tensors, _ = read_safetensors(a.path)
    beside = {
        "model_ema.decay": np.array(0.5, "float32"),
        "alphas_cumprod": np.linspace(1, 0, 5).astype("float32"),
        "first_stage_model.decoder.bias": np.ones(3, "float32"),
        "extra.weight": np.ones((2, 2), "float32"),
    }
    write_safetensors(tmp_path / "b.safetensors", tensors | beside)
    write_safetensors(tmp_path / "c.safetensors", tensors | {k: 3 * v for k, v in beside.items()})
    merged(tmp_path / "out.safetensors", (tmp_path / "b.safetensors", 0.5),
           (tmp_path / "c.safetensors", 0.5))  # fmt: skip
    got, _ = read_safetensors(tmp_path / "out.safetensors")
    assert "model_ema.decay" not in got
    for name in ("alphas_cumprod", "first_stage_model.decoder.bias"):
        assert np.array_equal(got[name], beside[name])
    assert np.array_equal(got["extra.weight"], 2 * beside["extra.weight"])

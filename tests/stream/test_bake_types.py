"""Bakes that change the type of the weights, and values that a type cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter import Full, LowRank
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import (
    NumericsError,
)
from tests.builders.baking import bake_into, read_all, same_bytes
from tests.builders.bases import (
    STORAGE,
    adapter_for,
    asked,
    exact,
    modules,
    read_safetensors,
    sharded,
    single,
    ulp,
    unet_alone,
)
from tests.builders.deltas import adapter, tensor


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F8_E4M3"])
def test_conversion_of_all_floats(tmp_path: Path, dtype: str) -> None:
    base = sharded(tmp_path / "base", "sd15", "F32")
    a = adapter_for("sd15", only=lambda n: "attn1" in n)
    bake_into(base, [(a, 1.0)], tmp_path / "out", dtype=dtype)
    change = asked(base.weights, [(a, 1.0)])
    wanted = base.tensors(exact(base.weights, [(a, 1.0)]))
    plain = base.tensors(base.weights)
    total = 0
    for file, tensors in read_all(tmp_path / "out").items():
        for name, array in tensors.items():
            assert array.dtype == STORAGE[dtype]
            want = wanted[file][name]
            total += array.nbytes if file.startswith("unet") else 0
            gap = np.abs(array.astype("float64") - want)
            assert (gap <= 0.5 * ulp(want, dtype) + 1e-7).all()
            if want.dtype == np.float32 or np.array_equal(want, plain[file][name]):
                assert same_bytes(array, plain[file][name].astype(STORAGE[dtype]))
    assert change
    index = json.loads(
        (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert index["metadata"]["total_size"] == total
    open_checkpoint(tmp_path / "out")


def test_conversion_leaves_integers_alone(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F32")
    bake_into(base, [], tmp_path / "out.safetensors", dtype="BF16")
    before, after = (read_safetensors(p)[0] for p in (base.path, tmp_path / "out.safetensors"))
    assert list(before) == list(after)
    for name, old in before.items():
        kind = old.dtype if old.dtype.kind == "i" else STORAGE["BF16"]
        assert same_bytes(after[name], old.astype(kind)), name


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    shape = modules("sd15")["unet.conv_out"].shape
    huge = Full.of(tensor(np.full(shape, 1e5)), "diff")
    a = adapter({"unet.conv_out": huge}, families=["sd15"])
    with pytest.raises(NumericsError, match="do not fit float16") as caught:
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    assert caught.value.module == "model.diffusion_model.out.2.weight"
    assert [p.name for p in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("seed", [None, 1])
def test_adapters_that_are_not_finite_are_refused(
    tmp_path: Path, bad: float, seed: int | None
) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "BF16")
    shape = modules("sd15")["unet.conv_out"].shape
    up = np.ones((shape[0], 2, 1, 1))
    up[1, 0] = bad
    down = np.ones((2, *shape[1:]))
    down[0, 0] = 0.0
    a = adapter({"unet.conv_out": LowRank(tensor(up), tensor(down), shape)}, families=["sd15"])
    with pytest.raises(NumericsError, match="the change by the adapters holds NaN"):
        bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors", seed=seed)
    assert not (tmp_path / "out.safetensors").exists()


def test_float64_bases_are_computed_in_float64(tmp_path: Path) -> None:
    base = unet_alone(tmp_path / "base.safetensors", "sd15", "", "F64")
    assert base.weights["unet.conv_in.weight"].dtype == np.float64
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    bake_into(base, [(a, 1.0)], tmp_path / "out.safetensors")
    after = read_safetensors(tmp_path / "out.safetensors")[0]
    for name, want in base.tensors(exact(base.weights, [(a, 1.0)]))[""].items():
        assert np.allclose(after[name], want, rtol=1e-14, atol=1e-15)

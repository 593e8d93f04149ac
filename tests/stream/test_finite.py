"""NaN and infinity in a base: found by their bits wherever they are, and refused with the tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.errors import FormatError, LoramergeError, NumericsError, spelled
from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.reader import TensorFile
from loramerge.stream import finite as module
from loramerge.stream.bake import bake
from loramerge.stream.finite import finite, require_finite_range
from loramerge.stream.plan import plan_bake
from tests.builders.bases import (
    Base,
    adapter_for,
    folder,
    read_safetensors,
    single,
    unet_alone,
    write_safetensors,
)

BITS = [name for name in DTYPES if name.startswith(("F8", "F16", "BF16"))]


@pytest.mark.parametrize("dtype", BITS)
def test_every_value_of_the_small_types_is_told(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    every = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
    right = np.isfinite(every.astype("float32"))
    assert not right.all() and right.any()
    for value, is_finite in list(zip(every, right, strict=True))[:: max(1, len(every) // 4096)]:
        assert finite(dtype, value.tobytes()) == is_finite, value
    assert finite(dtype, every[right].tobytes())
    for value in every[~right][:: max(1, len(every) // 1024)]:
        assert not finite(dtype, value.tobytes())


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_the_large_types_are_told(dtype: str) -> None:
    kind = np.dtype(dtype)
    name = next(name for name, entry in DTYPES.items() if entry.numpy == dtype)
    most = np.finfo(kind).max
    fine = np.array([0, -0.0, most, -most, np.finfo(kind).tiny, 1], kind)
    assert finite(name, fine.tobytes()) and finite(name, b"")
    for bad in (np.nan, np.inf, -np.inf):
        assert not finite(name, np.append(fine, kind.type(bad)).tobytes())
    assert finite("I32", np.array([-1, 2**31 - 1], "int32").tobytes())


@pytest.mark.parametrize("place", [0, 1, 6, 7, 14])
def test_every_value_is_checked_once_whatever_the_ranges(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    values = np.zeros(15, "float32")
    values[place] = np.nan
    arrays = {"odd": np.zeros(3, "int8"), "x": values, "z": np.zeros(5, "float16")}
    write_safetensors(tmp_path / "a.safetensors", arrays)
    tensors = list(TensorFile(tmp_path / "a.safetensors").tensors.values())
    first, last = tensors[0].info.start, tensors[-1].info.stop
    for step in (1, 3, 7, 16, 1000):
        found = 0
        for start in range(first, last, step):
            try:
                require_finite_range(tensors, start, min(start + step, last))
            except NumericsError as error:
                assert error.module == "x"
                found += 1
        assert found == 1


def _run(base: Base, output: Path, **options: Any) -> None:
    a = adapter_for("sd15", only=lambda name: name.endswith("attn1.to_q"))
    dtype = options.pop("dtype", None)
    plan = plan_bake(open_checkpoint(base.path), [(a, Weight(1.0))], dtype=dtype)
    bake(plan, output, threads=2, **options)


def _spoil(path: Path, name: str, bad: float) -> None:
    tensors, metadata = read_safetensors(path)
    tensors = {key: value.copy() for key, value in tensors.items()}
    tensors[name].reshape(-1)[-1] = bad
    write_safetensors(path, tensors, metadata)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", ["F16", "F8_E5M2"])
def test_nonfinite_values_are_refused_or_copied_in_unchanged_tensors(
    tmp_path: Path, bad: float, dtype: str
) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", dtype)
    name = next(key for key in read_safetensors(base.path)[0] if "first_stage" in key)
    _spoil(base.path, name, bad)
    with pytest.raises(NumericsError, match="nothing is added") as caught:
        _run(base, tmp_path / "out.safetensors")
    assert caught.value.module == name
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]
    _run(base, tmp_path / "out.safetensors", allow_nonfinite=True)
    old, new = (read_safetensors(p)[0][name] for p in (base.path, tmp_path / "out.safetensors"))
    assert old.tobytes() == new.tobytes()


def test_nonfinite_values_are_refused_or_copied_when_only_the_type_changes(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F32")
    name = next(key for key in read_safetensors(base.path)[0] if "first_stage" in key)
    _spoil(base.path, name, np.inf)
    output = tmp_path / "out.safetensors"
    with pytest.raises(NumericsError, match="NaN or infinity"):
        _run(base, output, dtype="F16")
    for seed in (None, 3):
        _run(base, output, dtype="F16", allow_nonfinite=True, seed=seed, force=True)
        assert np.isposinf(read_safetensors(output)[0][name].reshape(-1)[-1])
    _spoil(base.path, name, 1e30)  # it was finite: the type cannot hold it
    with pytest.raises(NumericsError, match="do not fit float16"):
        _run(base, output, dtype="F16", allow_nonfinite=True, force=True)


def test_files_to_which_nothing_is_added_are_looked_at(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    path = next((tmp_path / "base" / "vae").glob("*.safetensors"))
    _spoil(path, next(iter(read_safetensors(path)[0])), np.nan)
    with pytest.raises(NumericsError, match="nothing is added"):
        _run(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    _run(base, tmp_path / "out", allow_nonfinite=True)
    assert (tmp_path / "out" / path.relative_to(base.path)).read_bytes() == path.read_bytes()


def test_nonfinite_values_are_always_refused_in_changed_tensors(tmp_path: Path) -> None:
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    name = next(key for key in read_safetensors(base.path)[0] if key.endswith("attn1.to_q.weight"))
    _spoil(base.path, name, np.nan)
    with pytest.raises(NumericsError, match="the base holds NaN or infinity") as caught:
        _run(base, tmp_path / "out.safetensors", allow_nonfinite=True)
    assert caught.value.module == name and "adapters" not in spelled(caught.value.hint or "")


def _scaled(path: Path, scale: Any) -> Base:
    """Write a UNet of which one weight is float8 with a scale."""
    base = unet_alone(path, "sd15", "model.diffusion_model.")
    tensors, metadata = read_safetensors(path)
    name = next(key for key in tensors if key.endswith("attn1.to_q.weight"))
    tensors = dict(tensors)
    tensors[name] = np.full_like(tensors[name], 100.0).astype(ml_dtypes.float8_e4m3fn)
    tensors[name.removesuffix("weight") + "scale_weight"] = np.asarray(scale)
    write_safetensors(path, tensors, metadata)
    return base


@pytest.mark.parametrize("scale", [np.float32("nan"), np.float32("inf"), np.float16("inf")])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, scale: Any) -> None:
    base = _scaled(tmp_path / "base.safetensors", scale)
    with pytest.raises(FormatError, match="scale") as caught:
        _run(base, tmp_path / "out.safetensors", allow_nonfinite=True)
    assert str(caught.value.module).endswith("attn1.to_q.scale_weight")
    with pytest.raises(LoramergeError) as other:  # and where nothing is added
        a = adapter_for("sd15", only=lambda name: name.endswith("attn2.to_q"))
        plan = plan_bake(open_checkpoint(base.path), [(a, Weight(1.0))])
        bake(plan, tmp_path / "out.safetensors", threads=2)
    assert str(other.value.module).endswith("attn1.to_q.scale_weight")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_scale_that_its_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = _scaled(tmp_path / "base.safetensors", np.float16(6e4))
    a = adapter_for("sd15", only=lambda name: name.endswith("attn1.to_q"))
    plan = plan_bake(open_checkpoint(base.path), [(a, Weight(1e12))])
    with pytest.raises(NumericsError, match="scale") as caught:
        bake(plan, tmp_path / "out.safetensors", threads=2)
    assert str(caught.value.module).endswith("attn1.to_q.scale_weight")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]

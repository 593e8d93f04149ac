"""Bakes into variants, shards and pickled files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.builders.baking import assert_baked, bake_into, everything, same_bytes
from tests.builders.bases import (
    UNET_FILE,
    adapter_for,
    exact,
    folder,
    read_safetensors,
    sharded,
    single,
    ulp,
    write_safetensors,
)


def test_variants_beside_each_other_are_both_baked(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", "sd15")
    half = {k: v.astype("float16") for k, v in base.weights.items()}
    variant = UNET_FILE.replace(".safetensors", ".fp16.safetensors")
    write_safetensors(base.path / variant, base.tensors(half)[UNET_FILE])
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    found = bake_into(base, [(a, 1.0)], tmp_path / "out")
    assert len(found) == 2 * len(a.deltas)
    whole = read_safetensors(tmp_path / "out" / UNET_FILE)[0]
    small = read_safetensors(tmp_path / "out" / variant)[0]
    for name, want in base.tensors(exact(base.weights, [(a, 1.0)]))[UNET_FILE].items():
        assert np.allclose(whole[name], want, atol=1e-6)
        assert small[name].dtype == np.float16
        assert (np.abs(small[name] - want) <= 2 * ulp(want, "F16") + 1e-4).all()


def test_sharded_variants_are_both_baked(tmp_path: Path) -> None:
    base = sharded(tmp_path / "base", "sd15")
    for path in sorted((base.path / "unet").glob("*-of-*.safetensors")):
        name = path.name.replace(".safetensors", ".fp16.safetensors")
        path.with_name(name).write_bytes(path.read_bytes())
    a = adapter_for("sd15", only=lambda n: n.startswith("unet."))
    bake_into(base, [(a, 1.0)], tmp_path / "out")
    for path in sorted((tmp_path / "out" / "unet").glob("*0000?-of-00002.safetensors")):
        twin = path.with_name(path.name.replace(".safetensors", ".fp16.safetensors"))
        assert path.read_bytes() == twin.read_bytes()


def test_pickles_become_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = single(tmp_path / "base.safetensors", "sd15", "F16")
    (tensors,) = base.tensors(base.weights).values()
    tensors = {k: v for k, v in tensors.items() if v.size}
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": {n: torch.tensor(t) for n, t in tensors.items()}}, path)
    a = everything("sd15")
    bake_into(path, [(a, 0.5)], tmp_path / "pickled.safetensors")
    bake_into(base, [(a, 0.5)], tmp_path / "plain.safetensors")
    pickled, plain = (
        read_safetensors(tmp_path / f"{n}.safetensors")[0] for n in ("pickled", "plain")
    )
    assert list(pickled) == [n for n in plain if n != "empty"]
    assert all(same_bytes(array, plain[name]) for name, array in pickled.items())


def test_a_pickled_text_encoder(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = folder(tmp_path / "base", "sd15")
    file = base.path / "text_encoder" / "model.safetensors"
    tensors = read_safetensors(file)[0]
    torch.save(
        {n: torch.tensor(t) for n, t in tensors.items()}, file.with_name("pytorch_model.bin")
    )
    file.unlink()
    bake_into(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out")
    assert_baked(base, [(adapter_for("sd15"), 1.0)], tmp_path / "out", "F32")
    assert not (tmp_path / "out" / "text_encoder" / "pytorch_model.bin").exists()

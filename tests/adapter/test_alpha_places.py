"""Alphas are never written in ComfyUI's dialect, and always in kohya's for transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loramerge.adapter.load import load
from loramerge.adapter.save import save
from tests.builders.samples import Array, read_safetensors

R = np.random.default_rng(0)
KOHYA, COMFYUI = "lora_unet_time_in_in_layer", "diffusion_model.time_in.in_layer"


def _normal(*shape: int) -> Array:
    return (R.standard_normal(shape) * 0.02).astype(np.float32)


def _factors(kind: str) -> dict[str, Array]:
    """Tensors of rank 2 of a module `(3072, 256)`."""
    if kind == "lora":
        return {"lora_up.weight": _normal(3072, 2), "lora_down.weight": _normal(2, 256)}
    if kind == "dora":
        return {**_factors("lora"), "dora_scale": 1 + _normal(3072, 1)}
    if kind == "loha":
        a = {f"hada_w{i}_a": _normal(3072, 2) for i in (1, 2)}
        return a | {f"hada_w{i}_b": _normal(2, 256) for i in (1, 2)}
    return {
        "lokr_w1": _normal(4, 4),
        "lokr_w2_a": _normal(768, 2),
        "lokr_w2_b": _normal(2, 64),
    }


def _file(folder: Path, stem: str, kind: str, alpha: float | None) -> Path:
    tensors: dict[str, Array] = {f"{stem}.{role}": t for role, t in _factors(kind).items()}
    if alpha is not None:
        tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)
    path = folder / f"{kind}.safetensors"
    save_file(tensors, path, {"modelspec.architecture": "flux-1-dev/lora"})
    return path


def _parts(path: Path) -> list[Array]:
    """Return ΔW of each module, or the parts of a DoRA, which needs a base."""
    (delta,) = load(path).deltas.values()
    return [part.dense() for part in delta.content().free or (delta,)]


KINDS = ("lora", "dora", "loha", "lokr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", [KOHYA, COMFYUI])
def test_comfyui_files_have_no_alpha(tmp_path: Path, kind: str, stem: str) -> None:
    """diffusers ignores one beside these names, so that a file acts at another strength there."""
    path = _file(tmp_path, stem, kind, 1.5)
    out = tmp_path / "out.safetensors"
    save(load(path), out, to="comfyui")
    assert not [key for key in read_safetensors(out)[0] if key.endswith("alpha")]
    for ours, theirs in zip(_parts(out), _parts(path), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stem", [KOHYA, COMFYUI])
def test_kohya_files_of_transformers_have_every_alpha(tmp_path: Path, kind: str, stem: str) -> None:
    """The loaders of sd-scripts and musubi-tuner stop where one is missing."""
    path = _file(tmp_path, stem, kind, None)
    out = tmp_path / "out.safetensors"
    save(load(path), out, to="kohya")
    tensors = read_safetensors(out)[0]
    assert float(tensors[f"{KOHYA}.alpha"]) == 2.0
    for ours, theirs in zip(_parts(out), _parts(path), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_alpha_that_a_file_lacks_is_called_as_its_factors_are(tmp_path: Path) -> None:
    """The text encoder of Lumina 2 has two names in kohya's dialect, of which one is usual."""
    stems = [f"lora_te1_layers_{i}_mlp_up_proj" for i in (0, 25)]
    tensors = {
        f"{stem}.lora_{role}.weight": _normal(*shape)
        for stem in stems
        for role, shape in (("up", (9216, 2)), ("down", (2, 2304)))
    }
    save_file(tensors, tmp_path / "a.safetensors", {"modelspec.architecture": "lumina-2/lora"})
    out = tmp_path / "out.safetensors"
    save(load(tmp_path / "a.safetensors"), out, to="kohya")
    keys = read_safetensors(out)[0].keys()
    assert keys == tensors.keys() | {f"{stem}.alpha" for stem in stems}
    assert len(load(out).require_sound().deltas) == 2

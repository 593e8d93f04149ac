"""LoKr keeps the shapes of its factors: trainers compute them from options, and load no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from tests.builders.samples import read_safetensors, relative, safetensors_bytes

STEM = "diffusion_model.transformer_blocks.0.attn.to_q"
FACTORISED = (
    {"lokr_w1": (4, 6), "lokr_w2": (768, 512)},
    {"lokr_w1": (48, 64), "lokr_w2_a": (64, 4), "lokr_w2_b": (4, 48)},
    {"lokr_w1_a": (48, 3), "lokr_w1_b": (3, 64), "lokr_w2_a": (64, 4), "lokr_w2_b": (4, 48)},
)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    found = read_safetensors(path)[0]
    return {k.rpartition(".")[2]: v.shape for k, v in found.items() if not k.endswith("alpha")}


@pytest.mark.parametrize("shapes", FACTORISED, ids=lambda shapes: str(len(shapes)))
def test_another_dialect_and_a_weight_keep_them(
    shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    tensors = {
        f"{STEM}.{role}": random.standard_normal(shape, dtype=np.float32)
        for role, shape in shapes.items()
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors, {"modelspec.architecture": "Qwen-Image/lora"}))
    adapter = lm.load(path)
    assert adapter.family is not None and adapter.family.name == "qwen-image"
    for dialect in ("kohya", "comfyui"):
        lm.save(adapter, tmp_path / "b.safetensors", dialect=dialect, force=True)
        assert _shapes(tmp_path / "b.safetensors") == shapes
        adapter = lm.load(tmp_path / "b.safetensors")
    lm.save(lm.mix([(adapter, 0.5)]), tmp_path / "c.safetensors")
    assert _shapes(tmp_path / "c.safetensors") == shapes


def test_a_file_of_diffusers_holds_lokr_beside_lora(tmp_path: Path) -> None:
    """The header's configuration speaks of the LoRA alone, and its alphas are not those of the LoKr."""
    random = np.random.default_rng(0)
    tensors = {}
    for block, roles in enumerate(
        [FACTORISED[1], {"lora_A.weight": (8, 3072), "lora_B.weight": (3072, 8)}]
    ):
        stem = f"transformer.transformer_blocks.{block}.attn.to_q"
        for role, shape in roles.items():
            tensors[f"{stem}.{role}"] = random.standard_normal(shape, dtype=np.float32)
        tensors[f"{stem}.alpha"] = np.array(3.0, np.float32)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors, {"modelspec.architecture": "Qwen-Image/lora"}))
    before = lm.load(path)
    assert sorted(before.kinds()) == ["lokr", "lora"]
    random_x = random.standard_normal(3072)
    out = tmp_path / "b.safetensors"
    lm.save(lm.mix([(before, 0.5)]), out, dialect="diffusers")
    found = lm.load(out).require_sound()
    said = read_safetensors(out)[1]["lora_adapter_metadata"]
    assert set(found) == set(before) and "blocks.1" in said and "blocks.0" not in said
    for module in before:
        expected = 0.5 * (before[module].dense(dtype="float32") @ random_x)
        assert relative(found[module].dense(dtype="float32") @ random_x, expected) < 1e-4
    lone = {key: value for key, value in tensors.items() if ".0." in key}
    path.write_bytes(safetensors_bytes(lone, {"modelspec.architecture": "Qwen-Image/lora"}))
    lm.save(lm.mix([(lm.load(path), 0.5)]), tmp_path / "lone.safetensors", dialect="diffusers")
    lm.load(tmp_path / "lone.safetensors").require_sound()

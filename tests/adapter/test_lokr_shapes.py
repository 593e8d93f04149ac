"""LoKr keeps the shapes of its factors: trainers compute them from options, and load no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from tests.builders.samples import read_safetensors, safetensors_bytes

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

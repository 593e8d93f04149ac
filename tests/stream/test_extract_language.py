"""Extraction from language models: by the names of their modules, written as PEFT reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.errors import FamilyError
from tests.builders.bases import write_safetensors


def model(folder: Path, kind: str, change: float = 0.0) -> Path:
    """Write a folder as transformers does: an embedding, a norm, and two linear layers."""
    random = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (11, 6), "model.norm.weight": (6,),
        "model.layers.0.self_attn.q_proj.weight": (6, 6),
        "model.layers.0.mlp.down_proj.weight": (6, 9),
    }  # fmt: skip
    tensors = {n: random.standard_normal(shape).astype("float32") for n, shape in shapes.items()}
    tensors["model.layers.0.mlp.down_proj.weight"] += change
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(
        json.dumps({"model_type": kind, "architectures": ["SomeForCausalLM"]})
    )
    return folder


def test_modules_are_named_as_in_the_model(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", "some"), model(tmp_path / "tuned", "some", 0.25)
    found = lm.extract(tuned, base, rank=2)
    assert list(found) == ["model.layers.0.mlp.down_proj"]
    assert np.allclose(found["model.layers.0.mlp.down_proj"].dense(), 0.25, atol=1e-6)
    lm.save(found, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.mlp.down_proj"]
    lm.bake(base, tmp_path / "out", tmp_path / "again")
    assert not lm.diff(lm.extract(tmp_path / "again", base, rank=2), found).differs


def test_transposed_weights_are_refused(tmp_path: Path) -> None:
    base, tuned = model(tmp_path / "base", "gpt2"), model(tmp_path / "tuned", "gpt2", 0.25)
    with pytest.raises(FamilyError, match="transposed"):
        lm.extract(tuned, base, rank=2)

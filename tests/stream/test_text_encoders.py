"""Adapters of the text encoders of diffusion transformers, baked into encoders by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from loramerge.algebra.weights import Weight
from loramerge.checkpoint import open_checkpoint
from loramerge.families import FAMILIES, parameters
from loramerge.stream.bake import bake
from loramerge.stream.plan import plan_bake
from tests.builders.samples import Array, read_safetensors, safetensors_bytes

WIDTH = 6  # of every layer: names are the models' own, shapes are not


def encoder(family: str, component: str, head: str = "") -> dict[str, Array]:
    """The tensors of a small encoder with transformers' names."""
    (found,) = (c for c in FAMILIES[family].components if c.name == component)
    random = np.random.default_rng(0)
    return {
        f"{head}{module.path}.{parameter}": random.standard_normal(
            (WIDTH,) * (len(module.shape) if parameter == "weight" else 1), "float32"
        )
        for module in found.modules
        for parameter in parameters(module)
    }


def adapter(path: Path, stem: str) -> tuple[Path, Array]:
    up, down = (np.random.default_rng(n).standard_normal((WIDTH, WIDTH), "float32") for n in (1, 2))
    path.write_bytes(safetensors_bytes({
        f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down,
        f"{stem}.alpha": np.array(WIDTH, "float32"),
    }))  # fmt: skip
    return path, up @ down


def require_baked(before: Mapping[str, Array], after: Path, key: str, change: Array) -> None:
    got, _ = read_safetensors(after)
    for name, value in before.items():
        want = value + change if name == key else value
        assert np.allclose(got[name], want, atol=1e-5), name


# family, component, what the file has before the names, stem in the adapter, name of the module
CASES = [
    ("lumina2", "text_encoder", "model.", "lora_te_layers_3_mlp_up_proj", "layers.3.mlp.up_proj"),
    ("sana", "text_encoder", "", "text_encoder.layers.3.mlp.up_proj", "layers.3.mlp.up_proj"),
    ("hunyuan-video", "text_encoder", "model.", "lora_te1_layers_3_self_attn_q_proj",
     "layers.3.self_attn.q_proj"),
    ("hidream-i1", "text_encoder_4", "", "lora_te4_model_layers_3_self_attn_q_proj",
     "model.layers.3.self_attn.q_proj"),
    ("hidream-i1", "text_encoder_3", "", "text_encoder_3.encoder.block.3.layer.0.SelfAttention.q",
     "encoder.block.3.layer.0.SelfAttention.q"),
    ("pixart", "text_encoder", "", "lora_te1_encoder_block_3_layer_0_SelfAttention_q",
     "encoder.block.3.layer.0.SelfAttention.q"),
]  # fmt: skip


@pytest.mark.long_tail(keep=2)
@pytest.mark.parametrize(("family", "component", "head", "stem", "module"), CASES)
def test_a_lone_encoder_takes_the_adapters_of_its_families(
    family: str, component: str, head: str, stem: str, module: str, tmp_path: Path
) -> None:
    """As ComfyUI loads it: one file of the encoder alone, which several families may share."""
    stored = encoder(family, component, head)
    base = tmp_path / "encoder.safetensors"
    base.write_bytes(safetensors_bytes(stored))
    path, change = adapter(tmp_path / "mine.safetensors", stem)
    checkpoint = open_checkpoint(base)
    assert family in {one.name for one in checkpoint.candidates}
    bake(plan_bake(checkpoint, [(load(path), Weight())]), tmp_path / "out.safetensors")
    require_baked(stored, tmp_path / "out.safetensors", f"{head}{module}.weight", change)


@pytest.mark.parametrize("classes", [["Gemma2Model"], ["Gemma2ForCausalLM"]])
def test_a_folder_of_transformers_takes_them_too(classes: list[str], tmp_path: Path) -> None:
    head = "model." if "For" in classes[0] else ""
    stored = encoder("lumina2", "text_encoder", head)
    base = tmp_path / "encoder"
    base.mkdir()
    (base / "model.safetensors").write_bytes(safetensors_bytes(stored))
    config = {"model_type": "gemma2", "architectures": classes}
    (base / "config.json").write_text(json.dumps(config), "utf-8")
    stem = (
        "text_encoder.layers.3.mlp.up_proj"
        if not head
        else f"base_model.model.{head}layers.3.mlp.up_proj"
    )
    path, change = adapter(tmp_path / "mine.safetensors", stem)
    bake(plan_bake(open_checkpoint(base), [(load(path), Weight())]), tmp_path / "out")
    key = f"{head}layers.3.mlp.up_proj.weight"
    require_baked(stored, tmp_path / "out" / "model.safetensors", key, change)


def test_an_adapter_of_a_language_model_is_of_no_family(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.3.mlp.up_proj"
    path, _ = adapter(tmp_path / "mine.safetensors", stem)
    assert load(path).info.detection.candidates == ()

"""Names that programs have for modules, where these differ from the rule of their dialect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loramerge as lm
from loramerge.adapter.load import load
from tests.builders.samples import Array, safetensors_bytes

Tensors = dict[str, Array]


def _lora(stem: str, rows: int, columns: int, up: str, down: str) -> Tensors:
    random = np.random.default_rng(len(stem))
    return {
        f"{stem}.{down}.weight": random.standard_normal((1, columns)).astype("float16"),
        f"{stem}.{up}.weight": random.standard_normal((rows, 1)).astype("float16"),
    }


def _kohya(stem: str, rows: int, columns: int) -> Tensors:
    alpha = {f"lora_unet_{stem}.alpha": np.array(1.0, "float16")}
    return _lora(f"lora_unet_{stem}", rows, columns, "lora_up", "lora_down") | alpha


def _written(tensors: Tensors, folder: Path, dialect: str) -> set[str]:
    path = folder / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    lm.save(load(path), folder / "b.safetensors", dialect=dialect)
    return {key.rpartition(".lora_")[0] for key in load(folder / "b.safetensors").info.order}


@pytest.mark.parametrize("name", ["time_in", "vector_in", "guidance_in"])
def test_embedders_of_hunyuan_video_have_other_names_in_comfyui(name: str, tmp_path: Path) -> None:
    inner = 768 if name == "vector_in" else 256
    first, second = ("in_layer", "out_layer") if name == "vector_in" else ("mlp_0", "mlp_2")
    block = "double_blocks_19_img_attn_qkv"
    tensors = {
        **_kohya(f"{name}_{first}", 3072, inner),
        **_kohya(f"{name}_{second}", 3072, 3072),
        **_kohya(block, 9216, 3072),
        **_kohya("double_blocks_0_img_mlp_fc1", 12288, 3072),
    }
    found = _written(tensors, tmp_path, "comfyui")
    assert {f"diffusion_model.{name}.{layer}" for layer in ("in_layer", "out_layer")} <= found


@pytest.mark.parametrize("level", ["model.language_model.", "model."])
@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
def test_the_text_encoder_of_qwen_image_in_files_of_onetrainer(
    dialect: str, level: str, tmp_path: Path
) -> None:
    module = f"{level}layers.27.mlp.down_proj"
    network = "transformer_blocks.59.img_mlp.net.2"
    if dialect == "kohya":
        tensors = _kohya(network.replace(".", "_"), 3072, 12288)
        stem = f"lora_te_{module}".replace(".", "_")
        tensors |= _lora(stem, 3584, 18944, "lora_up", "lora_down")
    else:
        tensors = _lora(f"diffusion_model.{network}", 3072, 12288, "lora_B", "lora_A")
        stem = f"text_encoders.qwen25_7b.transformer.{module}"
        tensors |= _lora(stem, 3584, 18944, "lora_B", "lora_A")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    adapter = load(path)
    assert not adapter.info.account.unknown
    assert {"text_encoder.model.language_model.layers.27.mlp.down_proj",
            f"transformer.{network}"} == set(adapter)  # fmt: skip


def test_lokr_keeps_the_factors_that_came(tmp_path: Path) -> None:
    """musubi-tuner's loader wants those of its own rule."""
    random = np.random.default_rng(2)
    stem = "blocks.39.self_attn.q"
    parts = {"lokr_w1": (64, 64), "lokr_w2_a": (80, 2), "lokr_w2_b": (2, 80)}
    tensors = {
        f"diffusion_model.{stem}.{role}": random.standard_normal(shape).astype("float32")
        for role, shape in parts.items()
    }
    tensors[f"diffusion_model.{stem}.alpha"] = np.array(1.0, "float32")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    lm.save(0.5 * lm.load(path), tmp_path / "b.safetensors", dialect="kohya")
    (delta,) = load(tmp_path / "b.safetensors").deltas.values()
    assert {role: tensor.shape for role, tensor in delta.stored().items()} == parts

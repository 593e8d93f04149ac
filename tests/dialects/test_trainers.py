"""Forms of the files of trainers: every key is used, with its scale. `tests/clients` runs their savers.

Source: diffusion-pipe (8f83dbf) `models/*.py: save_adapter`, whose folders hold PEFT's configuration
beside keys of ComfyUI or of the original network; SimpleTuner (bc8e6ab77) `training/lora_format.py` and
`training/save_hooks.py`, which writes diffusers' files, ComfyUI's with alphas, and LyCORIS' wrapper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramerge.adapter import Adapter
from loramerge.adapter.load import load
from loramerge.adapter.readers import readings
from loramerge.errors import FormatError
from tests.builders.samples import Array, relative, safetensors_bytes
from tests.tail import first

RANK = 2


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def _pair(stem: str, out: int = 16, inner: int = 16) -> dict[str, Array]:
    return {
        f"{stem}.lora_A.weight": _random(RANK, inner),
        f"{stem}.lora_B.weight": _random(out, RANK),
    }


def _read(
    folder: Path, tensors: Mapping[str, Array], config: Any = None, header: Any = None
) -> Adapter:
    """Read a folder with a configuration, or a lone file; nothing may be left over or amiss."""
    folder.mkdir(exist_ok=True)
    path = folder / "adapter_model.safetensors"
    stated = {} if header is None else {"lora_adapter_metadata": json.dumps(header)}
    path.write_bytes(safetensors_bytes(tensors, {"format": "pt"} | stated))
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    adapter = load(path if config is None else folder).require_sound()
    assert not adapter.info.account.unknown
    return adapter


# family → (stem in the file, rows, the module or modules it means)
DIFFUSION_PIPE = {
    "wan": (("diffusion_model.blocks.0.self_attn.q", 16, "transformer.blocks.0.attn1.to_q"),),
    "qwen-image": (
        ("diffusion_model.transformer_blocks.1.attn.add_q_proj", 16,
         "transformer.transformer_blocks.1.attn.add_q_proj"),
    ),
    "hunyuan-video": (
        ("transformer.double_blocks.0.img_attn_qkv", 48,
         "transformer.transformer_blocks.0.attn.to_q+to_k+to_v"),
        ("transformer.single_blocks.0.linear1", 7 * 16,
         "transformer.single_transformer_blocks.0.attn.to_q+attn.to_k+attn.to_v+proj_mlp"),
    ),
    "ltx-video": (
        ("diffusion_model.transformer_blocks.0.attn1.to_q", 16,
         "transformer.transformer_blocks.0.attn1.to_q"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", first(3, DIFFUSION_PIPE))
def test_a_folder_of_diffusion_pipe(family: str, tmp_path: Path) -> None:
    rows = DIFFUSION_PIPE[family]
    tensors = {k: v for stem, out, _ in rows for k, v in _pair(stem, out).items()}
    stems = [stem.partition(".")[2] for stem, *_ in rows]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": stems}
    adapter = _read(tmp_path / "a", tensors, config)
    assert family in (adapter.info.detection.name or "").split(" or ")
    assert list(adapter) == [module for *_, module in rows]
    for (stem, *_), delta in zip(rows, adapter.values(), strict=True):
        change = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        assert relative(delta.dense(), 2 * change) < 1e-6


def test_lokr_of_diffusion_pipe(tmp_path: Path) -> None:
    stem = "diffusion_model.blocks.0.self_attn.q"
    w1, a, b = _random(4, 4), _random(4, RANK), _random(RANK, 4)
    parts = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2_a": a, f"{stem}.lokr_w2_b": b}
    config = {"peft_type": "LOKR", "r": RANK, "alpha": 2 * RANK, "decompose_factor": 4}
    adapter = _read(tmp_path / "a", parts, config)
    (delta,) = adapter.values()
    assert adapter.kinds() == {"lokr": 1}
    assert relative(delta.dense(), 2 * np.kron(w1, a @ b)) < 1e-6


def test_files_of_simpletuner(tmp_path: Path) -> None:
    module = "transformer_blocks.0.attn.to_q"
    change = _pair("x")["x.lora_B.weight"] @ _pair("x")["x.lora_A.weight"]
    comfyui = _pair(f"diffusion_model.{module}") | {
        f"diffusion_model.{module}.alpha": np.array(3 * RANK, "float32")
    }
    # beside alphas it states the configuration without a component
    header = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3 * RANK, "alpha_pattern": {}}
    for stated in (None, header):
        adapter = _read(tmp_path / "comfyui", comfyui, header=stated)
        assert not [p for p in adapter.info.problems if p.severity == "error"]
        (delta,) = adapter.values()
        assert relative(delta.dense(), 3 * change) < 1e-6

    # its DoRA for ComfyUI has PEFT's word for magnitudes
    magnitude = {f"diffusion_model.{module}.lora_magnitude_vector": np.ones(16, "float32")}
    adapter = _read(tmp_path / "dora", comfyui | magnitude)
    assert adapter.kinds() == {"dora": 1}
    assert list(adapter) == [f"transformer.{module}"]

    stem = f"lycoris_{module.replace('.', '_')}"
    w1, w2 = _random(4, 4), _random(4, 4)
    wrapper = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2, f"{stem}.alpha": np.array(1e10, "f4")}
    adapter = _read(tmp_path / "lycoris", wrapper)
    (delta,) = adapter.values()
    assert adapter.info.dialect == "lycoris"
    assert relative(delta.dense(), np.kron(w1, w2)) < 1e-6  # whole factors have no scale


def test_the_folder_of_diffusion_pipe_for_sdxl(tmp_path: Path) -> None:
    """It has no configuration, and beside the file only that of the training."""
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{stem}.lora_down.weight": _random(RANK, 640),
        f"{stem}.lora_up.weight": _random(640, RANK),
        f"{stem}.alpha": np.array(RANK, "float32"),
    }
    (tmp_path / "lora.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    (tmp_path / "config.toml").touch()
    adapter = load(tmp_path).require_sound()
    assert len(adapter) == 1
    assert not adapter.info.account.unknown
    (tmp_path / "style.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    with pytest.raises(FormatError, match="holds no adapter"):  # but two, of which none is chosen
        load(tmp_path)


# family → stem in the file, its full width and rows: layers that have the names of Flux.1
WIDE = {
    "hunyuan-image": ("diffusion_model.double_blocks.19.img_attn.qkv", 3584, 3 * 3584),
    "hunyuan-video-15": ("diffusion_model.double_blocks.53.img_attn.qkv", 2048, 3 * 2048),
}


@pytest.mark.parametrize("family", WIDE)
def test_widths_tell_families_of_the_same_names(family: str, tmp_path: Path) -> None:
    stem, width, rows = WIDE[family]
    adapter = _read(tmp_path / "a", _pair(stem, rows, width))
    assert adapter.info.detection.name == family


@pytest.mark.long_tail
@pytest.mark.peers
def test_the_kohya_file_of_diffusion_pipe(tmp_path: Path) -> None:
    """It converts SDXL by diffusers, which writes the rank as alpha."""
    torch: Any = pytest.importorskip("torch")
    utils: Any = pytest.importorskip("diffusers.utils.state_dict_utils")
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    named = {
        **_pair(f"unet.{block}.attn1.to_q", 640, 640),
        **_pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768, 768),
        **_pair("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 5120, 1280),
    }
    states = utils.convert_state_dict_to_kohya(
        {key: torch.from_numpy(value) for key, value in named.items()}
    )
    adapter = _read(tmp_path / "a", {key: value.numpy() for key, value in states.items()})
    assert adapter.info.detection.name == "sdxl"
    assert sorted(adapter) == sorted({key.partition(".lora_")[0] for key in named})
    for name, delta in adapter.modules():
        change = named[f"{name}.lora_B.weight"] @ named[f"{name}.lora_A.weight"]
        assert relative(delta.dense(), change) < 1e-5


def test_loha_in_the_dotted_names_of_diffusers(tmp_path: Path) -> None:
    stem = "transformer.transformer_blocks.0.attn.to_q"
    a, b, c, d = _random(16, RANK), _random(RANK, 16), _random(16, RANK), _random(RANK, 16)
    parts = {f"{stem}.hada_w1_a": a, f"{stem}.hada_w1_b": b,
             f"{stem}.hada_w2_a": c, f"{stem}.hada_w2_b": d}  # fmt: skip
    adapter = _read(tmp_path / "a", parts)
    (delta,) = adapter.values()
    assert adapter.kinds() == {"loha": 1} and not adapter.info.account.unknown
    assert relative(delta.dense(), (a @ b) * (c @ d)) < 1e-6


def test_files_of_simpletuner_for_comfyui_with_names_of_diffusers(tmp_path: Path) -> None:
    """Its Wan: ComfyUI reads the original's names alone, so no program is claimed to read these."""
    stem = "diffusion_model.blocks.0.attn1.to_q"
    factors = _pair(stem, 5120, 5120) | {f"{stem}.alpha": np.array(RANK, "f4")}
    adapter = _read(tmp_path / "a", factors)
    assert adapter.info.detection.name == "wan" and list(adapter) == [
        "transformer.blocks.0.attn1.to_q"
    ]
    assert not list(readings(adapter))


def test_the_dora_of_simpletuner_for_sdxl_in_comfyui(tmp_path: Path) -> None:
    """Its factors have kohya's names, and its magnitudes keep those of diffusers."""
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    stem, rows = f"lora_unet_{path.replace('.', '_')}", np.linspace(1, 2, 640, dtype="f4")
    up, down = _random(640, RANK), _random(RANK, 640)
    factors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up,
               f"{stem}.alpha": np.array(RANK, "f4"),
               f"unet.{path}.lora_magnitude_vector": rows}  # fmt: skip
    adapter = _read(tmp_path / "a", factors)
    assert adapter.kinds() == {"dora": 1} and not adapter.info.account.unknown
    weight = _random(640, 640).astype("f8")
    (delta,) = adapter.require_sound().values()
    changed = weight + up.astype("f8") @ down
    want = rows[:, None] * changed / np.linalg.norm(changed, axis=1, keepdims=True) - weight
    assert relative(delta.dense(weight), want) < 1e-6

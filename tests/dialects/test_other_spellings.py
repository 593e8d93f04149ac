"""Spellings that programs write beside the usual ones: the same modules, written back as they came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loramerge.adapter.load import load
from tests.builders.samples import Array, safetensors_bytes

Tensors = dict[str, Array]


def factors(stem: str, rows: int, columns: int, ends: tuple[str, str]) -> Tensors:
    random = np.random.default_rng(len(stem))
    return {
        stem + ends[0]: random.standard_normal((1, columns)).astype("float16"),
        stem + ends[1]: random.standard_normal((rows, 1)).astype("float16"),
    }


def _several(stem: str, ends: tuple[str, str], rows: int = 3072, columns: int = 3072) -> Tensors:
    return {
        key: tensor
        for i in (0, 7)
        for key, tensor in factors(stem.format(i), rows, columns, ends).items()
    }


def _lokr(stem: str, rows: int, columns: int) -> Tensors:
    random = np.random.default_rng(0)
    return {
        f"{stem}.lokr_w1": random.standard_normal((4, 4)).astype("float16"),
        f"{stem}.lokr_w2": random.standard_normal((rows // 4, columns // 4)).astype("float16"),
    }


def _oft(stem: str, rows: int) -> Tensors:
    blocks = np.zeros((4, rows // 4, rows // 4), "float32")
    return {f"{stem}.oft_blocks": blocks, f"{stem}.alpha": np.array(1e-5, "float32")}


def _kernels(stem: str, rows: int, columns: int) -> Tensors:
    random = np.random.default_rng(1)
    return {
        f"{stem}.hada_w{half}_{side}": random.standard_normal(shape).astype("float16")
        for half in "12"
        for side, shape in {"a": (rows, 1, 1, 1), "b": (1, columns, 3, 3)}.items()
    }


def _of_inputs(stem: str) -> Tensors:
    return {
        **factors(stem, 3072, 3072, _PEFT),
        f"{stem}.dora_scale": np.ones((1, 3072), "float16"),
    }


def _triangles(stem: str, columns: int) -> Tensors:
    return {
        f"{stem}.oft_R.weight": np.full((columns // 32, 32 * 31 // 2), 0.01, "float16"),
        f"{stem}.oft_R.scaled_oft": np.array(True),
    }


_SDXL = "input_blocks.4.1.transformer_blocks.{}.attn1.to_q"
_CLIP_G = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj"
_KOHYA = (".lora_down.weight", ".lora_up.weight")
_PEFT = (".lora_A.weight", ".lora_B.weight")
_FLUX = "transformer.single_transformer_blocks.{}.attn.to_q"
# what is spelled so · family · a module of it
CASES: dict[str, tuple[Callable[[], Tensors], str | None, str]] = {
    "the adapter's name": (
        lambda: _several(_FLUX, (".lora_A.default_0.weight", ".lora_B.default_0.weight")),
        "flux1",
        _FLUX.format(7),
    ),
    "the wrapper of PEFT": (
        lambda: _several(
            _FLUX.replace("transformer.", "transformer.base_model.model.", 1),
            (".lora.down.weight", ".lora.up.weight"),
        ),
        "flux1",
        _FLUX.format(7),
    ),
    "no last word": (
        lambda: _several("blocks.{}.mixer.qkv_z", (".lora_A", ".lora_B"), 9216),
        None,
        "blocks.7.mixer.qkv_z",
    ),
    "the original's UNet in ComfyUI": (
        lambda: {
            **factors("diffusion_model." + _SDXL.format(0), 640, 640, _KOHYA),
            **factors(_CLIP_G, 1280, 1280, _KOHYA),
        },
        "sdxl",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    "the original's UNet alone": (
        lambda: factors(_SDXL.format(1), 640, 640, _KOHYA),
        "sdxl",
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q",
    ),
    "LoKr under diffusers' names": (
        lambda: {**_lokr(_FLUX.format(0), 3072, 3072), **_lokr(_FLUX.format(37), 3072, 3072)},
        "flux1",
        _FLUX.format(37),
    ),
    "kohya's OFT": (
        lambda: _oft("oft_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", 640),
        "sdxl",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    "OneTrainer's LoHa of convolutions": (
        lambda: _kernels("lora_unet_input_blocks_4_0_in_layers_2", 640, 320),
        "sdxl",
        "unet.down_blocks.1.resnets.0.conv1",
    ),
    "OneTrainer's magnitudes of inputs": (
        lambda: {**_of_inputs(_FLUX.format(0)), **_of_inputs(_FLUX.format(37))},
        "flux1",
        _FLUX.format(37),
    ),
    "the wrapper of Cosmos' single file": (
        lambda: {
            **_several("net.blocks.{}.self_attn.q_proj", _PEFT, 2048, 2048),
            **factors("net.llm_adapter.blocks.5.mlp.0", 4096, 1024, _PEFT),
        },
        "anima",
        "transformer.transformer_blocks.7.attn1.to_q",
    ),
    "OneTrainer's OFT": (
        lambda: {
            **_triangles("lora_unet_single_blocks_0_linear2", 15360),
            **_triangles("lora_unet_single_blocks_37_linear1", 3072),
            **_triangles("lora_unet_double_blocks_18_img_attn_qkv", 3072),
        },
        "flux1",
        "transformer.single_transformer_blocks.0.proj_out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_another_spelling_is_the_same_module_and_is_written_back(case: str, tmp_path: Path) -> None:
    import loramerge as lm

    make, family, module = CASES[case]
    path = tmp_path / "a.safetensors"
    tensors = make()
    path.write_bytes(safetensors_bytes(tensors))
    adapter = load(path)
    assert not adapter.info.account.unknown
    assert family is None or family in {f.name for f in adapter.info.detection.candidates}
    assert module in adapter
    lm.save(adapter, tmp_path / "b.safetensors")
    written = load(tmp_path / "b.safetensors")
    assert set(written.info.order) == tensors.keys()
    for name, delta in adapter.items():
        stored = written[name].stored()
        assert all(np.array_equal(stored[r].numpy(), t.numpy()) for r, t in delta.stored().items())


def test_lokr_is_not_written_under_the_names_of_diffusers(tmp_path: Path) -> None:
    """ai-toolkit writes it, few programs read it."""
    import loramerge as lm
    from loramerge.errors import NotExpressible

    path = tmp_path / "a.safetensors"
    stem = "lora_unet_single_blocks_0_linear2"
    path.write_bytes(safetensors_bytes(_lokr(stem, 3072, 15360)))
    with pytest.raises(NotExpressible):
        lm.save(load(path), tmp_path / "b.safetensors", dialect="diffusers")


@pytest.mark.parametrize("word", ["magnitude", "dora_scale"])
def test_magnitudes_of_outputs_are_written_with_the_word_of_diffusers(
    word: str, tmp_path: Path
) -> None:
    """ai-toolkit has words of its own for them."""
    import loramerge as lm

    stems = [_FLUX.format(i) for i in (0, 37)]
    tensors: Tensors = {}
    for stem in stems:
        shape = (3072,) if word == "magnitude" else (3072, 1)
        tensors |= factors(stem, 3072, 3072, _PEFT) | {f"{stem}.{word}": np.ones(shape, "float16")}
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    adapter = load(path)
    assert adapter.info.dialect == "diffusers" and not adapter.info.account.unknown
    assert adapter.info.detection.name == "flux1" and list(adapter) == stems
    lm.save(adapter, tmp_path / "b.safetensors")
    written = load(tmp_path / "b.safetensors")
    assert {k.rpartition(".to_q")[2] for k in written.info.order} == {
        ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector",
    }  # fmt: skip
    assert all(written[stem].form == adapter[stem].form == "dora of outputs" for stem in stems)

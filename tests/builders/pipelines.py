"""Small whole pipelines with random weights, as folders: SD1, SD2 (v-prediction, zero SNR) and SDXL."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.builders.folders import folder_of_process

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

Kind = Literal["sd15", "sd21", "sdxl"]
_TOKENS = 16


def _tokenizer(folder: Path) -> None:
    """A vocabulary of single characters: every text has tokens, and words are many."""
    letters = [chr(n) for n in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: n for n, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    made = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"),
        model_max_length=_TOKENS,
    )  # fmt: skip
    made.save_pretrained(folder)


def _encoder(width: int, projection: int | None = None) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=200, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=_TOKENS, projection_dim=projection or width,
        bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip
    if projection is None:
        return transformers.CLIPTextModel(config)
    return transformers.CLIPTextModelWithProjection(config)


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _unet(kind: Kind) -> Any:
    own: dict[str, Any] = {"cross_attention_dim": 12}
    if kind == "sd21":
        own["use_linear_projection"] = True
    if kind == "sdxl":
        own = {
            "cross_attention_dim": 20, "use_linear_projection": True, "addition_embed_type":
            "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
        }  # fmt: skip
    return diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **own,
    )  # fmt: skip


def pipeline_folder(kind: Kind = "sd15") -> Path:
    """Write a pipeline once for each process; do not write into it."""
    return _written(kind)


@cache
def _written(kind: Kind) -> Path:
    folder = folder_of_process(kind)
    torch.manual_seed({"sd15": 1, "sd21": 2, "sdxl": 3}[kind])
    xl = kind == "sdxl"
    models = {"unet": _unet(kind), "vae": _vae(), "text_encoder": _encoder(12)}
    if xl:
        models["text_encoder_2"] = _encoder(8, 8)
    for name, model in models.items():
        model.save_pretrained(folder / name)
    names = ["tokenizer", *(["tokenizer_2"] if xl else [])]
    for name in names:
        _tokenizer(folder / name)
    how = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        **(how if kind == "sd21" else {}),
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    if xl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["force_zeros_for_empty_prompt"] = False
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@cache
def small_adapter(kind: Kind = "sd15") -> Path:
    """Write an adapter of a pipeline once for each process."""
    import loramerge as lm

    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline_folder(kind) / "unet")
    torch.manual_seed(4)
    lm.inject_trainable_lora(unet, 2)
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if name.endswith("lora.up"):
                value.normal_(std=0.3)
    path = folder_of_process("adapter") / "zuzu.safetensors"
    lm.save_lora_weight(unet, path)
    return path

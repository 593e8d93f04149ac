"""Small whole SD3 and Flux.1 pipelines with random weights, as folders."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

torch: Any = pytest.importorskip("torch")
diffusers: Any = pytest.importorskip("diffusers")
transformers: Any = pytest.importorskip("transformers")

from tests.builders.folders import folder_of_process  # noqa: E402
from tests.builders.pipelines import _encoder, _tokenizer  # noqa: E402

Flow = Literal["sd3", "sd35", "flux-dev", "flux-schnell"]
FLOWS: tuple[Flow, ...] = ("sd3", "sd35", "flux-dev", "flux-schnell")
T5_TOKENS = 24


def _t5_tokenizer(folder: Path) -> None:
    letters = [(chr(n), -float(n % 7) - 1) for n in range(33, 127)]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters, ("▁", -2.0)]
    made = transformers.T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=T5_TOKENS)
    made.save_pretrained(folder)


def _t5(width: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=100, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def flux_transformer(guided: bool) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=12,
        guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def sd3_transformer(newer: bool) -> Any:
    """SD3, or SD3.5 medium with its norms and second attention."""
    own = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if newer else {}
    return diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=24,
        caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=24, **own,
    )  # fmt: skip


@cache
def flow_folder(kind: Flow) -> Path:
    """Write a pipeline once for each process; SD3 has T5, SD3.5 does not."""
    folder = folder_of_process(kind)
    torch.manual_seed(FLOWS.index(kind) + 11)
    flux = kind.startswith("flux")
    models: dict[str, Any] = {"vae": _vae()}
    index: dict[str, Any] = {"_diffusers_version": diffusers.__version__}
    if flux:
        models["transformer"] = flux_transformer(kind == "flux-dev")
        models |= {"text_encoder": _encoder(12), "text_encoder_2": _t5(12)}
        index["_class_name"] = "FluxPipeline"
        _tokenizer(folder / "tokenizer")
        _t5_tokenizer(folder / "tokenizer_2")
        index["tokenizer_2"] = ["transformers", "T5TokenizerFast"]
    else:
        models["transformer"] = sd3_transformer(kind == "sd35")
        models |= {"text_encoder": _encoder(12, 8), "text_encoder_2": _encoder(8, 8)}
        index["_class_name"] = "StableDiffusion3Pipeline"
        _tokenizer(folder / "tokenizer")
        _tokenizer(folder / "tokenizer_2")
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["text_encoder_3"] = index["tokenizer_3"] = [None, None]
        if kind == "sd3":
            models["text_encoder_3"] = _t5(24)
            _t5_tokenizer(folder / "tokenizer_3")
            index["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
    with torch.no_grad():  # norms and outputs of zeros or ones would hide mistakes
        for value in models["transformer"].parameters():
            value.add_(torch.randn_like(value) * 0.1)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        library = "diffusers" if name in ("vae", "transformer") else "transformers"
        index[name] = [library, type(model).__name__]
    dynamic = {"use_dynamic_shifting": kind == "flux-dev", "shift": 1.0 if flux else 3.0}
    diffusers.FlowMatchEulerDiscreteScheduler(**dynamic).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    index["image_encoder"] = index["feature_extractor"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def peer_of(kind: Flow) -> Any:
    """The pipeline as diffusers loads it."""
    name = "FluxPipeline" if kind.startswith("flux") else "StableDiffusion3Pipeline"
    lacking = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd35" else {}
    found = getattr(diffusers, name).from_pretrained(
        flow_folder(kind), local_files_only=True, **lacking
    )
    found.set_progress_bar_config(disable=True)
    return found

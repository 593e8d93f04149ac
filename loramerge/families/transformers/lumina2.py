"""Lumina Image 2.0: one stream of image and text, after two refiners, with diffusers' and its own
names.

Keys and values have a third as many heads as queries: of five equal parts of `qkv`, three are
queries. The text encoder, a language model, is not covered, nor is the original's last norm, which
nothing uses.

Source of the names: diffusers' `Lumina2Transformer2DModel` (verified), and the original single
files as diffusers' `convert_lumina2_to_diffusers` reads them (verified by conversion). Of the
sizes: the published configuration.
"""

from __future__ import annotations

from loramerge.families.decoder import DECODER_SIGN, GEMMA2_2B, decoder_modules, decoder_spellings
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Native,
    Row,
    Stack,
    expand,
    heads,
    native_slots,
    transformer_spellings,
)

__all__ = ["FAMILY"]


def _linear(name: str, rows: str | int, columns: str | int, native: str, *, bias: bool) -> Row:
    return Row(name, "linear", (rows, columns), bias, Native(native))


def _norm(name: str, width: str, native: str) -> Row:
    return Row(name, "norm", (width,), False, Native(native))


_ATTENTION = (
    _norm("attn.norm_q", "head", "attention.q_norm"),
    _norm("attn.norm_k", "head", "attention.k_norm"),
    Row("attn.to_q", "linear", ("w", "w"), False, Native("attention.qkv", 0, 5, 3)),
    Row("attn.to_k", "linear", ("keys", "w"), False, Native("attention.qkv", 3, 5)),
    Row("attn.to_v", "linear", ("keys", "w"), False, Native("attention.qkv", 4, 5)),
    _linear("attn.to_out.0", "w", "w", "attention.out", bias=False),
)
_REST = (
    _linear("feed_forward.linear_1", "4w", "w", "feed_forward.w1", bias=False),
    _linear("feed_forward.linear_2", "w", "4w", "feed_forward.w2", bias=False),
    _linear("feed_forward.linear_3", "4w", "w", "feed_forward.w3", bias=False),
    _norm("ffn_norm1", "w", "ffn_norm1"),
    _norm("norm2", "w", "attention_norm2"),
    _norm("ffn_norm2", "w", "ffn_norm2"),
)
_MODULATED = (
    *_ATTENTION,
    _linear("norm1.linear", "4w", "time", "adaLN_modulation.1", bias=True),
    _norm("norm1.norm", "w", "attention_norm1"),
    *_REST,
)
_PLAIN = (*_ATTENTION, _norm("norm1", "w", "attention_norm1"), *_REST)
_TIME = "time_caption_embed.timestep_embedder"
_TOP = (
    _linear("x_embedder", "w", 64, "x_embedder", bias=True),
    _linear(f"{_TIME}.linear_1", "time", 256, "t_embedder.mlp.0", bias=True),
    _linear(f"{_TIME}.linear_2", "time", "time", "t_embedder.mlp.2", bias=True),
    _norm("time_caption_embed.caption_embedder.0", "text", "cap_embedder.0"),
    _linear("time_caption_embed.caption_embedder.1", "w", "text", "cap_embedder.1", bias=True),
    _linear("norm_out.linear_1", "w", "time", "final_layer.adaLN_modulation.1", bias=True),
    _linear("norm_out.linear_2", 64, "w", "final_layer.linear", bias=True),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("noise_refiner.{}.", "noise_refiner.{}.", range(2), _MODULATED),
    Stack("context_refiner.{}.", "context_refiner.{}.", range(2), _PLAIN),
    Stack("layers.{}.", "layers.{}.", range(26), _MODULATED),
)
_WIDTH = 2304
_SIZES = {
    "w": _WIDTH, "4w": 4 * _WIDTH, "keys": _WIDTH // 3, "head": 96, "time": 1024, "text": 2304,
}  # fmt: skip

FAMILY = Family(
    name="lumina2",
    title="Lumina Image 2.0",
    task="text-to-image",
    gguf="lumina2",
    build=lambda: (
        Component("transformer", tuple(expand(_STACKS, _SIZES))),
        Component("text_encoder", tuple(decoder_modules(GEMMA2_2B))),
    ),
    spellings={
        "transformer": transformer_spellings("original", native_slots(_STACKS)),
        "text_encoder": decoder_spellings("text_encoders.gemma2_2b.transformer."),
    },
    metadata=Metadata("lumina-2", "lumina2", "networks.lora_lumina", also=("lumina",)),
    verified="diffusers and transformers models on the meta device, names and shapes; "
    "diffusers' converters of files",
    classes={
        "transformer": "Lumina2Transformer2DModel",
        "text_encoder": "Gemma2Model",
    },
    prefixes={
        "kohya": {"text_encoder": ("lora_te_", "lora_te1_")},
        # without a folder's name it is an adapter of the language model, and of no family
        "peft": {"text_encoder": ("text_encoder/base_model.model.",)},
    },
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "layers.0.feed_forward.linear_1",
        "layers.0.norm1.linear",
    ),
    sign=(
        r"(?:layers|_refiner)[._]\d+[._](?:att|feed_forward|adaLN|norm1|ffn)"
        rf"|cap_embedder|caption_embedder|{DECODER_SIGN}"
    ),
    one_alpha=False,
    programs={"comfyui": "comfyui"},
)

"""Ideogram 4: one stream of image and text, with diffusers' and its own names.

The unconditional pass of guidance may have an adapter of its own, of the same names. The text
encoder is not covered.

Source of the names: diffusers' `Ideogram4Transformer2DModel`, its
`_convert_non_diffusers_ideogram4_lora_to_diffusers`, and for the other layers ComfyUI's network.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    fused,
    heads,
    linear,
    native_slots,
    norm,
    same,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TOP = (
    linear("input_proj", "w", 128),
    norm("llm_cond_norm", "features"),
    linear("llm_cond_proj", "w", "features"),
    linear("t_embedding.mlp_in", "w", "w"),
    linear("t_embedding.mlp_out", "w", "w"),
    linear("adaln_proj", "small", "w"),
    same("embed_image_indicator", "embedding", (2, "w")),
    linear("final_layer.linear", 128, "w"),
    linear("final_layer.adaln_modulation", "w", "small"),
)
_LAYER = (
    *fused(tuple(f"attention.to_{x}" for x in "qkv"), "w", "w", "attention.qkv", bias=False),
    norm("attention.norm_q", "head"),
    norm("attention.norm_k", "head"),
    linear("attention.to_out.0", "w", "w", "attention.o", bias=False),
    linear("feed_forward.w1", "hidden", "w", bias=False),
    linear("feed_forward.w2", "w", "hidden", bias=False),
    linear("feed_forward.w3", "hidden", "w", bias=False),
    *(norm(name, "w") for name in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2")),
    linear("adaln_modulation", "4w", "small"),
)
_STACKS = (Stack("", "", (0,), _TOP), Stack("layers.{}.", "layers.{}.", range(34), _LAYER))
_WIDTH = 4608
_SIZES = {
    "w": _WIDTH, "4w": 4 * _WIDTH, "hidden": 12288, "head": 256, "small": 512, "features": 53248,
}  # fmt: skip

FAMILY = Family(
    name="ideogram4",
    title="Ideogram 4",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata("Ideogram-4", "ideogram4", "networks.lora_ideogram4", also=("ideogram",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "Ideogram4Transformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"layers.0.attention.to_{x}" for x in ("q", "k", "v", "out.0")),
        "layers.0.feed_forward.w1",
    ),
    sign=r"layers[._]\d+[._](?:attention|feed_forward|adaln_modulation)|llm_cond_proj",
    prefixes={"comfyui": {"transformer": ("diffusion_model.", "conditional_transformer.")}},
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)

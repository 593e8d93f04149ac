"""Qwen-Image 2.1: one stream with one modulation for all blocks and a gated feed-forward.

The published names are diffusers' own; ComfyUI's single files have the gate and the layer beside it
fused. It shares the loader of Qwen-Image, and none of its shapes. The text encoder is not covered.

Source of the names: diffusers' `QwenImage21Transformer2DModel`, and ComfyUI's single file as
diffusers' `convert_qwen_image21_transformer_checkpoint_to_diffusers` reads it.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata, Spelling, plain_slot
from loramerge.families.stacks import (
    Stack,
    expand,
    fused,
    heads,
    linear,
    native_slots,
    norm,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TOP = (
    linear("time_text_embed.timestep_embedder.linear_1", "w", 256, bias=False),
    linear("time_text_embed.timestep_embedder.linear_2", "w", "w", bias=False),
    norm("txt_in.text_norm", "w"),
    linear("txt_in.in_layer", "w", "w", bias=False),
    linear("txt_in.out_layer", "w", "w", bias=False),
    linear("img_in", "w", 64, bias=False),
    linear("modulation.1", "4w", "w", bias=False),
    linear("norm_out.linear", "w", "w", bias=False),
    linear("proj_out", 64, "w", bias=False),
)
_BLOCK = (
    *(linear(f"attn.to_{x}", "w", "w", bias=False) for x in ("q", "k", "v", "out.0")),
    norm("attn.norm_q", "head"),
    norm("attn.norm_k", "head"),
    *fused(("img_mlp.gate_layer", "img_mlp.proj"), "hidden", "w", "img_mlp.gate_up", bias=False),
    linear("img_mlp.out", "w", "hidden", bias=False),
)
_BLOCKS = "transformer_blocks.{}."
_STACKS = (Stack("", "", (0,), _TOP), Stack(_BLOCKS, _BLOCKS, range(32), _BLOCK))
_SIZES = {"w": 4096, "4w": 4 * 4096, "hidden": 12288, "head": 128}

FAMILY = Family(
    name="qwen-image-21",
    title="Qwen-Image 2.1",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={
        "transformer": (
            Spelling("original", "", plain_slot),
            *transformer_spellings("comfyui", native_slots(_STACKS)),
        )
    },
    metadata=Metadata(
        None, None, also=("qwen-image-2.1", "qwen_image_2.1", "qwen_image_21", "qwenimage21")
    ),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "QwenImage21Transformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        "transformer_blocks.0.img_mlp.proj",
        "transformer_blocks.0.img_mlp.gate_layer",
    ),
    sign=r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn|img_mlp)",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)

"""ERNIE-Image: one stream of image and text with one modulation for all layers; the names are
diffusers' own.

The text encoder, a language model, is not covered.

Source of the names: diffusers' `ErnieImageTransformer2DModel`, whose names single files have too.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    norm,
    same,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TOP = (
    same("x_embedder.proj", "conv", ("w", 128, 1, 1), bias=True),
    linear("text_proj", "w", 2560, bias=False),
    linear("time_embedding.linear_1", "w", "w"),
    linear("time_embedding.linear_2", "w", "w"),
    linear("adaLN_modulation.1", "6w", "w"),
    linear("final_norm.linear", "2w", "w"),
    linear("final_linear", 128, "w"),
)
_LAYER = (
    norm("adaLN_sa_ln", "w"),
    *(linear(f"self_attention.to_{x}", "w", "w", bias=False) for x in ("q", "k", "v", "out.0")),
    norm("self_attention.norm_q", "head"),
    norm("self_attention.norm_k", "head"),
    norm("adaLN_mlp_ln", "w"),
    linear("mlp.gate_proj", "hidden", "w", bias=False),
    linear("mlp.up_proj", "hidden", "w", bias=False),
    linear("mlp.linear_fc2", "w", "hidden", bias=False),
)
_STACKS = (Stack("", "", (0,), _TOP), Stack("layers.{}.", "layers.{}.", range(24), _LAYER))
_WIDTH = 3072
_SIZES = {"w": _WIDTH, "2w": 2 * _WIDTH, "6w": 6 * _WIDTH, "hidden": 8192, "head": 128}

FAMILY = Family(
    name="ernie-image",
    title="ERNIE-Image",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("ernie",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "ErnieImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=tuple(f"layers.0.self_attention.to_{x}" for x in ("q", "k", "v", "out.0")),
    sign=r"layers[._]\d+[._](?:self_attention|mlp)[._]",
    common_dialect="comfyui",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)

"""LongCat-Image: the blocks of Flux.1 with a language model for the text, and no pooled vector.

Source of the names: diffusers' `LongCatImageTransformer2DModel`; ComfyUI's network has the original
names of Flux.1. The text encoder is not covered.
"""

from __future__ import annotations

from loramerge.families.flux import DOUBLE, DOUBLE_MODULATION, SINGLE, SINGLE_MODULATION, embedder
from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TOP = (
    *embedder("time_embed.timestep_embedder", "time_in", "frequencies"),
    linear("context_embedder", "w", 3584, "txt_in"),
    linear("x_embedder", "w", 64, "img_in"),
    # the original modulates by (shift, scale), diffusers by (scale, shift)
    linear("norm_out.linear", "2w", "w", "final_layer.adaLN_modulation.1", swapped=True),
    linear("proj_out", 64, "w", "final_layer.linear"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    Stack("transformer_blocks.{}.", "double_blocks.{}.", range(19), (*DOUBLE_MODULATION, *DOUBLE)),
    Stack(
        "single_transformer_blocks.{}.",
        "single_blocks.{}.",
        range(38),
        (*SINGLE_MODULATION, *SINGLE),
    ),
)
_WIDTH = 3072
_SIZES = {
    **{f"{n}w": n * _WIDTH for n in range(2, 7)}, "w": _WIDTH, "head": 128, "frequencies": 256,
}  # fmt: skip

FAMILY = Family(
    name="longcat-image",
    title="LongCat-Image",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("bfl", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("longcat",)),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "LongCatImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.0.proj_out",
    ),
    sign=r"(?:double|single)_blocks[._]|(?<!\d[._])transformer_blocks[._]",
    common_dialect="diffusers",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)

"""CogView 4: blocks of text and image in one stream; the names are diffusers' own.

Source of the names: diffusers' `CogView4Transformer2DModel`. The text encoder is not covered.
"""

from __future__ import annotations

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

_CONDITION = "time_condition_embed"
_TOP = (
    linear("patch_embed.proj", "w", 64),
    linear("patch_embed.text_proj", "w", 4096),
    linear(f"{_CONDITION}.timestep_embedder.linear_1", "time", "w"),
    linear(f"{_CONDITION}.timestep_embedder.linear_2", "time", "time"),
    linear(f"{_CONDITION}.condition_embedder.linear_1", "time", 1536),
    linear(f"{_CONDITION}.condition_embedder.linear_2", "time", "time"),
    linear("norm_out.linear", "2w", "time"),
    linear("proj_out", 64, "w"),
)
_BLOCK = (
    linear("norm1.linear", "12w", "time"),
    *(linear(f"attn1.to_{x}", "w", "w") for x in ("q", "k", "v", "out.0")),
    linear("ff.net.0.proj", "4w", "w"),
    linear("ff.net.2", "w", "4w"),
)
_BLOCKS = "transformer_blocks.{}."
_STACKS = (Stack("", "", (0,), _TOP), Stack(_BLOCKS, _BLOCKS, range(28), _BLOCK))
_WIDTH = 4096
_SIZES = {"w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 4, 12)}, "time": 512}

FAMILY = Family(
    name="cogview4",
    title="CogView 4",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("cogview",)),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "CogView4Transformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn1.to_{x}" for x in "qk"),
        "transformer_blocks.0.ff.net.2",
    ),
    sign=r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn1|ff|norm1)[._]",
    common_dialect="diffusers",
    one_alpha=False,
)

"""Ovis-Image: a smaller relative of Flux.1 with gated feed-forwards; the names are diffusers' own.

The names of ComfyUI's single file, which has the gate apart, are not covered, nor is the text encoder.

Source of the names: diffusers' `OvisImageTransformer2DModel`.
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
    transformer_spellings,
)

__all__ = ["FAMILY"]

_TOP = (
    linear("timestep_embedder.linear_1", "w", 256),
    linear("timestep_embedder.linear_2", "w", "w"),
    norm("context_embedder_norm", 2048),
    linear("context_embedder", "w", 2048),
    linear("x_embedder", "w", 64),
    linear("norm_out.linear", "2w", "w"),
    linear("proj_out", 64, "w"),
)
_DOUBLE = (
    linear("norm1.linear", "6w", "w"),
    linear("norm1_context.linear", "6w", "w"),
    *(norm(f"attn.norm_{x}", "head") for x in ("q", "k", "added_q", "added_k")),
    *(linear(f"attn.to_{x}", "w", "w") for x in ("q", "k", "v", "out.0", "add_out")),
    *(linear(f"attn.add_{x}_proj", "w", "w") for x in "qkv"),
    *(
        row
        for name in ("ff", "ff_context")
        for row in (
            linear(f"{name}.net.0.proj", "8w", "w"),
            linear(f"{name}.net.2", "w", "4w"),
        )
    ),
)
_SINGLE = (
    linear("norm.linear", "3w", "w"),
    linear("proj_mlp", "8w", "w"),
    linear("proj_out", "w", "5w"),
    *(norm(f"attn.norm_{x}", "head") for x in "qk"),
    *(linear(f"attn.to_{x}", "w", "w") for x in "qkv"),
)
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(name, name, range(count), rows)
        for name, count, rows in (
            ("transformer_blocks.{}.", 6, _DOUBLE),
            ("single_transformer_blocks.{}.", 27, _SINGLE),
        )
    ),
)
_WIDTH = 3072
_SIZES = {"w": _WIDTH, **{f"{n}w": n * _WIDTH for n in (2, 3, 4, 5, 6, 8)}, "head": 128}

FAMILY = Family(
    name="ovis-image",
    title="Ovis-Image",
    task="text-to-image",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("ovis",)),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "OvisImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"transformer_blocks.0.attn.to_{x}" for x in ("q", "k", "v", "out.0")),
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.0.proj_out",
    ),
    sign=r"(?<!\d[._])transformer_blocks[._]",
    common_dialect="diffusers",
    one_alpha=False,
)

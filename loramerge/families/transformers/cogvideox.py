"""CogVideoX: blocks of text and video in one stream; the names are diffusers' own.

The modules are those of 5B; 2B has fewer blocks of the same names, with sizes of its own. An adapter of
the attention of 5B alone may also be one of the video's layers of Mochi 1, whose names and shapes these
are too.

Source of the names: diffusers' `CogVideoXTransformer3DModel`. Of the sizes: the published
configurations.
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
    same("patch_embed.proj", "conv", ("w", "channels", 2, 2), bias=True),
    linear("patch_embed.text_proj", "w", 4096),
    linear("time_embedding.linear_1", 512, "w"),
    linear("time_embedding.linear_2", 512, 512),
    norm("norm_final", "w", bias=True),
    linear("norm_out.linear", "2w", 512),
    norm("norm_out.norm", "w", bias=True),
    linear("proj_out", 64, "w"),
)
_BLOCK = (
    *(
        row
        for name in ("norm1", "norm2")
        for row in (linear(f"{name}.linear", "6w", 512), norm(f"{name}.norm", "w", bias=True))
    ),
    norm("attn1.norm_q", 64, bias=True),
    norm("attn1.norm_k", 64, bias=True),
    *(linear(f"attn1.to_{x}", "w", "w") for x in ("q", "k", "v", "out.0")),
    linear("ff.net.0.proj", "4w", "w"),
    linear("ff.net.2", "w", "4w"),
)
_BLOCKS = "transformer_blocks.{}."
_STACKS = (Stack("", "", (0,), _TOP), Stack(_BLOCKS, _BLOCKS, range(42), _BLOCK))


def _sizes(width: int) -> dict[str, int]:
    return {"w": width, **{f"{n}w": n * width for n in (2, 4, 6)}, "channels": 16}


_SIZES = _sizes(3072)
_SMALL = _sizes(1920)

FAMILY = Family(
    name="cogvideox",
    title="CogVideoX",
    task="text-to-video",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("cogvideo",)),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "CogVideoXTransformer3DModel"},
    heads=heads(_STACKS),
    probes=tuple(f"transformer_blocks.0.attn1.to_{x}" for x in "qkv"),
    sign=r"(?<!\d[._])transformer_blocks[._]\d+[._](?:attn1|ff|norm[12])[._]",
    sizes=(
        {_SIZES["channels"]: 32},  # of networks that see an image
        {ours: _SMALL[name] for name, ours in _SIZES.items()},  # 2B
    ),
    twins=("ConsisID",),
    common_dialect="diffusers",
    one_alpha=False,
)

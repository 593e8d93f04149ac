"""HiDream I1: double and single blocks, each with experts; the names are diffusers' own.

Only the transformer is covered, not the four text encoders.

Source of the names: diffusers' `HiDreamImageTransformer2DModel`, whose names single files have too.
Of the sizes: the published configuration.
"""

from __future__ import annotations

from loramerge.families.spec import Component, Family, Metadata
from loramerge.families.stacks import (
    Row,
    Stack,
    expand,
    heads,
    linear,
    native_slots,
    norm,
    transformer_spellings,
)

__all__ = ["FAMILY"]


def _attention(end: str = "") -> tuple[Row, ...]:
    return (
        *(linear(f"block.attn1.to_{x}{end}", "w", "w") for x in ("q", "k", "v", "out")),
        norm(f"block.attn1.q_rms_norm{end}", "w"),
        norm(f"block.attn1.k_rms_norm{end}", "w"),
    )


def _feed_forward(name: str, hidden: str) -> tuple[Row, ...]:
    return (
        linear(f"{name}.w1", hidden, "w", bias=False),
        linear(f"{name}.w2", "w", hidden, bias=False),
        linear(f"{name}.w3", hidden, "w", bias=False),
    )


_EXPERTS = (
    *_feed_forward("block.ff_i.shared_experts", "shared"),
    *(row for n in range(4) for row in _feed_forward(f"block.ff_i.experts.{n}", "hidden")),
    linear("block.ff_i.gate", 4, "w", bias=False),
)
_DOUBLE = (
    linear("block.adaLN_modulation.1", "12w", "w"),
    *_attention(),
    *_attention("_t"),
    *_EXPERTS,
    *_feed_forward("block.ff_t", "hidden"),
)
_SINGLE = (linear("block.adaLN_modulation.1", "6w", "w"), *_attention(), *_EXPERTS)
_TOP = (
    linear("t_embedder.timestep_embedder.linear_1", "w", 256),
    linear("t_embedder.timestep_embedder.linear_2", "w", "w"),
    linear("p_embedder.pooled_embedder.linear_1", "w", 2048),
    linear("p_embedder.pooled_embedder.linear_2", "w", "w"),
    linear("x_embedder.proj", "w", 64),
    linear("final_layer.linear", 64, "w"),
    linear("final_layer.adaLN_modulation.1", "2w", "w"),
    *(linear(f"caption_projection.{n}.linear", "w", 4096, bias=False) for n in range(49)),
)
_BLOCKS = "{}_stream_blocks.{{}}."
_STACKS = (
    Stack("", "", (0,), _TOP),
    *(
        Stack(_BLOCKS.format(sort), _BLOCKS.format(sort), range(count), rows)
        for sort, count, rows in (("double", 16, _DOUBLE), ("single", 32, _SINGLE))
    ),
)
_WIDTH = 2560
_SIZES = {
    "w": _WIDTH, "2w": 2 * _WIDTH, "6w": 6 * _WIDTH, "12w": 12 * _WIDTH, "shared": 3584,
    "hidden": 6912,
}  # fmt: skip

FAMILY = Family(
    name="hidream-i1",
    title="HiDream I1",
    gguf="hidream",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("hidream",)),
    verified="diffusers model on the meta device, names and shapes; its converters of files",
    classes={"transformer": "HiDreamImageTransformer2DModel"},
    heads=heads(_STACKS),
    probes=(
        *(f"double_stream_blocks.0.block.attn1.to_{x}" for x in ("q", "k", "v", "out")),
        "single_stream_blocks.0.block.attn1.to_q",
    ),
    sign=r"(?:double|single)_stream_blocks[._]",
    common_dialect="comfyui",
    programs={"comfyui": "comfyui"},
    one_alpha=False,
)

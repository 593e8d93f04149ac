"""Cosmos 3: a language model whose layers have a second, generating half; the names are diffusers' own.

Source of the names: diffusers' `Cosmos3OmniTransformer`, with the sizes of its defaults.
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
    same("embed_tokens", "embedding", (151936, "w")),
    norm("norm", "w"),
    norm("norm_moe_gen", "w"),
    linear("lm_head", 151936, "w", bias=False),
    linear("proj_in", "w", 192),
    linear("proj_out", 192, "w"),
    linear("time_embedder.linear_1", "w", 256),
    linear("time_embedder.linear_2", "w", "w"),
)
_ROWS = {"q": "w", "k": "keys", "v": "keys"}
_LAYER = (
    *(linear(f"self_attn.to_{x}", rows, "w", bias=False) for x, rows in _ROWS.items()),
    *(linear(f"self_attn.add_{x}_proj", rows, "w", bias=False) for x, rows in _ROWS.items()),
    linear("self_attn.to_out", "w", "w", bias=False),
    linear("self_attn.to_add_out", "w", "w", bias=False),
    *(norm(f"self_attn.norm_{x}", "head") for x in ("q", "k", "added_q", "added_k")),
    *(
        row
        for name in ("mlp", "mlp_moe_gen")
        for row in (
            linear(f"{name}.gate_proj", "hidden", "w", bias=False),
            linear(f"{name}.up_proj", "hidden", "w", bias=False),
            linear(f"{name}.down_proj", "w", "hidden", bias=False),
        )
    ),
    *(
        norm(f"{name}{half}", "w")
        for name in ("input_layernorm", "post_attention_layernorm")
        for half in ("", "_moe_gen")
    ),
)
_STACKS = (Stack("", "", (0,), _TOP), Stack("layers.{}.", "layers.{}.", range(36), _LAYER))
_SIZES = {"w": 4096, "keys": 1024, "hidden": 12288, "head": 128}

FAMILY = Family(
    name="cosmos3",
    title="Cosmos 3",
    build=lambda: (Component("transformer", tuple(expand(_STACKS, _SIZES))),),
    spellings={"transformer": transformer_spellings("original", native_slots(_STACKS))},
    metadata=Metadata(None, None, also=("cosmos3", "cosmos-3")),
    verified="diffusers model on the meta device, names and shapes",
    classes={"transformer": "Cosmos3OmniTransformer"},
    heads=heads(_STACKS),
    probes=tuple(f"layers.0.self_attn.{x}" for x in ("to_q", "to_k", "to_v", "add_q_proj")),
    sign=r"layers[._]\d+[._](?:self_attn[._](?:to_|add_)|mlp_moe_gen)",
    common_dialect="diffusers",
    one_alpha=False,
)

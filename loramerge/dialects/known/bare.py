"""Dotted names of diffusion transformers without a prefix: the original's, or diffusers'."""

from __future__ import annotations

from loramerge.dialects.native import NETWORK, spell_native
from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import path, prefixes, spell
from loramerge.dialects.suffixes import KOHYA, ORIGINAL, PEFT_FIRST
from loramerge.families import Family

__all__ = ["DIALECT"]


_network = prefixes("bare", dict.fromkeys((*NETWORK, "unet"), ("",)))


def _transformer(family: Family, component: str) -> tuple[str, ...]:
    return ("",) if component == "transformer" else ()


# `.scale` is the weight of a norm here, and replaces the base's
_UNSCALED = {role: suffixes for role, suffixes in ORIGINAL.items() if role != "scale"}
_KOHYA = {role: suffixes for role, suffixes in KOHYA.items() if role != "scale"}

DIALECT = Dialect(
    name="bare",
    title="Dotted names without a prefix (BFL's control adapters, Lightning)",
    example="double_blocks.0.img_attn.qkv.lora_A.weight",
    order=8,
    forms=(
        Form(
            spell_native(_network),
            {**PEFT_FIRST, **_UNSCALED, "set_weight": (".scale",)},
            ("lycoris",),
        ),
        Form(spell(_transformer, path), _KOHYA, ("lycoris",)),
    ),
    alpha="tensor",
    prefixes={},
    marked_after=("",),
    marked_by_heads=True,
    writable="any module of a known diffusion transformer",
)

"""Keys of diffusers since it trains with PEFT: `component.path`, and PEFT's words for the factors."""

from __future__ import annotations

from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import COMPONENTS, dotted, path, prefixes, short_path, spell
from loramerge.dialects.suffixes import PEFT

__all__ = ["DIALECT"]

DIALECT = Dialect(
    name="diffusers",
    title="diffusers with PEFT keys",
    example="unet.down_blocks.0.….attn1.to_q.lora_A.weight",
    order=1,
    forms=(
        Form(
            spell(prefixes("diffusers", dotted), path, short_path),
            {
                **PEFT,
                "down": (*PEFT["down"], ".lora_down.weight"),
                "up": (*PEFT["up"], ".lora_up.weight"),
                "alpha": (".alpha",),
            },
            ("peft-lora",),
        ),
    ),
    alpha="header",
    prefixes={f"{name}.": name for name in COMPONENTS},
    loads_in=("diffusers", "ComfyUI", "InvokeAI"),
    writable="low-rank deltas of any module of a known family",
    programs=("diffusers",),
    container="diffusers",
    embeddings=None,
)

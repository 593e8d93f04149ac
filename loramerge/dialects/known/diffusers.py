"""Keys of diffusers since it trains with PEFT: `component.path`, and PEFT's words for the factors."""

from __future__ import annotations

from loramerge.dialects.native import spell_native
from loramerge.dialects.spec import Dialect, Form
from loramerge.dialects.spelling import COMPONENTS, dotted, path, prefixes, short_path, spell
from loramerge.dialects.suffixes import PEFT
from loramerge.families import Family

__all__ = ["DIALECT"]

_STEMS = spell(prefixes("diffusers", dotted), path, short_path)


def _originals(family: Family, component: str) -> tuple[str, ...]:
    """Return the prefix of original names in the families of which OneTrainer writes these.

    These are its keys that no mark tells from diffusers' own: `transformer.final_layer.linear`.
    """
    prefix = f"{component}."
    return (prefix,) if prefix in family.prefixes.get("onetrainer", {}).get(component, ()) else ()


_FACTORS = {
    "down": (*PEFT["down"], ".lora_down.weight"),
    "up": (*PEFT["up"], ".lora_up.weight"),
    "alpha": (".alpha",),
}
_PRODUCTS = {
    name: (f".{name}",)
    for name in (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        *("hada_w1_a", "hada_w1_b", "hada_t1"),
        *("hada_w2_a", "hada_w2_b", "hada_t2"),
    )
}

DIALECT = Dialect(
    name="diffusers",
    title="diffusers with PEFT keys",
    example="unet.down_blocks.0.….attn1.to_q.lora_A.weight",
    order=1,
    forms=(
        Form(_STEMS, _FACTORS, ("peft-lora",)),
        Form(spell_native(_originals), _FACTORS, written=False),
        Form(_STEMS, _PRODUCTS, written=False),  # ai-toolkit's LoKr, and LoHa so
        # OneTrainer's, of inputs, and ai-toolkit's
        Form(_STEMS, {"dora_scale": (".dora_scale", ".magnitude")}, written=False),
    ),
    alpha="header",
    prefixes={f"{name}.": name for name in COMPONENTS},
    writable="low-rank deltas of any module of a known family",
    programs=("diffusers",),
    container="diffusers",
    embeddings=None,
)

"""Keys of kohya-ss sd-scripts, which most programs read. UNets are named as in diffusers (that of SDXL
as in its single file), diffusion transformers by the original's names, fused as they are stored there.
"""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.dialects.native import NETWORK, original_path, spell_native
from loramerge.dialects.spec import Dialect, Form, Fused, Modules
from loramerge.dialects.spelling import flat, flat_short, prefixes, spell
from loramerge.dialects.suffixes import KOHYA
from loramerge.families import Family, Module

__all__ = ["DIALECT"]

_NETWORK = ("lora_unet_", "lora_unet__")
_PREFIXES = prefixes(
    "kohya",
    {
        "unet": ("lora_unet_",),
        "text_encoder": ("lora_te1_",),
        "text_encoder_2": ("lora_te2_",),
        "text_encoder_3": ("lora_te3_",),
        "text_encoder_4": ("lora_te4_",),
        "transformer": _NETWORK,
    },
)


def _original(family: Family, component: str) -> tuple[str, ...]:
    return _NETWORK if component in NETWORK else ()


def _flat_original(family: Family, component: str, module: Module) -> str | None:
    """Return the UNet's name in the single file, for the families that are named so."""
    if component != "unet" or "kohya" not in family.original_in:
        return None
    return original_path(family, component, module).replace(".", "_")


def _stems(family: Family, modules: Modules) -> Iterator[tuple[str, str | Fused]]:
    """Spell diffusion transformers by the original's names; diffusers' are read, too."""
    known = list(modules)
    yield from spell_native(_original, flat=True)(family, known)
    yield from spell(_PREFIXES, _flat_original, flat, flat_short)(family, known)


def _mangled(family: Family, component: str) -> tuple[str, ...]:
    return ("lora_unet_unet_",) if component == "unet" else ()


DIALECT = Dialect(
    name="kohya",
    title="kohya-ss sd-scripts (A1111, Forge, ComfyUI)",
    example="lora_unet_down_blocks_0_attentions_0_…_attn1_to_q.lora_down.weight",
    order=0,
    forms=(
        Form(_stems, KOHYA, ("lycoris",)),
        Form(spell(_mangled, flat), {"up": ("_lora_up.weight",), "down": ("_lora_down.weight",)}),
    ),
    alpha="tensor",
    states_alpha=True,
    prefixes={
        "lora_unet_": "unet",
        "lora_te1_": "text_encoder",
        "lora_te_": "text_encoder",
        "lora_te2_": "text_encoder_2",
        "lora_te3_": "text_encoder_3",
        "lora_te4_": "text_encoder_4",
    },
    writable="any module of a known family",
    programs=("comfyui", "a1111", "forge", "kohya", "invokeai"),
    container="kohya",
    embeddings="bundle",
)

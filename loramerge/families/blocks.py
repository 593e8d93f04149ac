"""The block of a module in its network, named as in the field's block-weight tools.

The UNet's blocks follow from where its tensors lie in the original single files: `IN00`…, `MID`,
`OUT00`…. Adapters of families without a table have names as their files spell them; for Flux the
patterns below find the block in every spelling.

Source: `get_flux_blocks` of sd-webui-lora-block-weight (b403cb7) and sd-webui-supermerger
(0b1c491), by its meaning: D and S are the double and the single blocks, IN is whatever reads an
input (image, text, time, vector, guidance), OUT the final layer, CLIP and T5 the text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from loramerge.families.spec import Family

__all__ = ["FLUX_DOUBLE", "FLUX_SINGLE", "FluxBlocks", "flux_blocks", "unet_blocks"]

_LDM = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.|middle_block\.")
_LDM_WORDS = {"input_blocks": "IN", "output_blocks": "OUT"}


@cache
def unet_blocks(family: Family) -> Mapping[str, str]:
    """Return module name → block, for the modules of the family's UNet that lie in one."""
    found = {}
    for component in family.components:
        spellings = family.spellings[component.name]
        if component.name != "unet" or not spellings:
            continue
        for module in component.modules:
            slot = spellings[0].slot(module, "weight")
            matched = _LDM.search(slot.tensor) if slot else None
            if matched:
                word = _LDM_WORDS.get(matched[1] or "")
                label = f"{word}{int(matched[2]):02d}" if word else "MID"
                found[f"{component.name}.{module.path}"] = label
    return found


FLUX_DOUBLE = tuple(f"D{n:02d}" for n in range(19))
FLUX_SINGLE = tuple(f"S{n:02d}" for n in range(38))

# Names are matched with `_` for every run of `.` and `_`, so that flat and dotted spellings are one,
# and without what stands for the network as a whole. The first that matches counts; a number is
# that of the block.
_NETWORK = r"(?:base_model_model_)?(?:(?:model_)?diffusion_model_|transformer_|unet_|lycoris_)?"
_BARE = r"transformer_blocks_(\d+)_"
_FLUX: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        ("T5", r"text_encoders?_(?:\w+_)?encoder_block_|text_encoders_t5xxl_"),
        ("CLIP", r"text_encoders?_(?:\w+_)?(?:text_model|encoder_layers)_|text_encoders_clip_l_"),
        ("D", rf"{_NETWORK}double_blocks_(\d+)_"),  # the original model's names
        ("D", rf"{_NETWORK}{_BARE}"),  # diffusers'
        ("S", rf"{_NETWORK}single_(?:transformer_)?blocks_(\d+)_"),
        ("IN", rf"{_NETWORK}(?:img|txt|time|vector|guidance)_in(?:_|$)"),
        ("IN", rf"{_NETWORK}(?:x_embedder|context_embedder|time_text_embed)"),
        ("OUT", rf"{_NETWORK}(?:final_layer|norm_out|proj_out)"),
    )
)
_DIFFUSERS_DOUBLE = re.compile(_NETWORK + _BARE)
# names, as they are spelled, that only a relative of Flux has
_RELATIVES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("HunyuanVideo", re.compile(r"double_blocks\.\d+\.(?:img|txt)_attn_|individual_token_refiner")),
    ("SD3 or AuraFlow", re.compile(r"joint_(?:transformer_)?blocks[._]")),
)
_SEPARATORS = re.compile(r"[._]+")


@dataclass(frozen=True)
class FluxBlocks:
    """The blocks found in the names of an adapter's modules.

    Args:
        labels: module name → `CLIP`, `T5`, `IN`, `D00`…, `S00`…, `OUT`; modules of no block are absent.
        doubt: why the adapter cannot be taken for one of Flux, or None.
    """

    labels: Mapping[str, str]
    doubt: str | None


def flux_blocks(modules: Iterable[str]) -> FluxBlocks:
    """Find the blocks of Flux in the module names of an adapter of no known family."""
    names = list(modules)
    labels = {name: label for name in names if (label := _flux_block(name)) is not None}
    return FluxBlocks(labels, _doubt(names, labels))


def _flux_block(name: str) -> str | None:
    flat = _SEPARATORS.sub("_", name)
    for label, pattern in _FLUX:
        matched = pattern.match(flat)
        if matched:
            return f"{label}{int(matched[1]):02d}" if matched.lastindex else label
    return None


def _doubt(names: Iterable[str], labels: Mapping[str, str]) -> str | None:
    """Return the reason why the adapter may be another model's, or None."""
    for model, pattern in _RELATIVES:
        if any(pattern.search(name) for name in names):
            return f"modules of {model}"
    found = set(labels.values()) - {"CLIP", "T5", "IN", "OUT"}
    if not found:
        return "no block of Flux"
    strange = sorted(found.difference(FLUX_DOUBLE, FLUX_SINGLE))
    if strange:
        return f"blocks that Flux lacks, such as {strange[0]}"
    single = not found.isdisjoint(FLUX_SINGLE)
    bare = any(_DIFFUSERS_DOUBLE.match(_SEPARATORS.sub("_", name)) for name in labels)
    if bare and not single:
        return "transformer_blocks alone, which Flux, SD3 and Qwen-Image all have"
    return None

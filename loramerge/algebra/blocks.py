"""Weights per block: the vectors and presets that the block-weight tools of the field share.

A vector gives one number for the text encoders (`BASE`) and one for each block that its length
names, in the numbering of the original single files: `IN00`…, `MID`, `OUT00`….

Source: the vectors and presets of sd-webui-lora-block-weight, by their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

from loramerge.adapter import Site
from loramerge.errors import UsageError, nearest
from loramerge.families import Family

__all__ = ["PRESETS", "VECTORS", "block_label", "block_order", "check_vector", "preset"]


def _numbered(word: str, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{word}{n:02d}" for n in numbers)


# length → the blocks it names, in order
VECTORS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", *_numbered("IN", (4, 5, 7, 8)), "MID", *_numbered("OUT", range(6))),
    17: ("BASE", *_numbered("IN", (1, 2, 4, 5, 7, 8)), "MID", *_numbered("OUT", range(3, 12))),
    20: ("BASE", *_numbered("IN", range(9)), "MID", *_numbered("OUT", range(9))),
    26: ("BASE", *_numbered("IN", range(12)), "MID", *_numbered("OUT", range(12))),
}

# the named vectors, of 17 values
PRESETS: Mapping[str, tuple[float, ...]] = {
    "NONE": (0,) * 17,
    "ALL": (1,) * 17,
    "INS": (1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "IND": (1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "INALL": (1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "MIDD": (1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0),
    "OUTD": (1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0),
    "OUTS": (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1),
    "OUTALL": (1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1),
}

_LDM = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.|middle_block\.")
_WORDS = {"input_blocks": "IN", "output_blocks": "OUT"}


def block_label(site: Site, family: Family) -> str | None:
    """Return `BASE`, `IN04`, `MID`, `OUT11`, or None for a module outside of all blocks."""
    if site.component.startswith("text_encoder"):
        return "BASE"
    return _labels(family).get(site.modules[0])


@cache
def _labels(family: Family) -> Mapping[str, str]:
    """Module name → block, for the modules of the UNet that lie in one."""
    found = {}
    for component in family.components:
        spellings = family.spellings[component.name]
        if component.name != "unet" or not spellings:
            continue
        for module in component.modules:
            slot = spellings[0].slot(module, "weight")
            matched = _LDM.search(slot.tensor) if slot else None
            if matched:
                word = _WORDS.get(matched[1] or "")
                label = f"{word}{int(matched[2]):02d}" if word else "MID"
                found[f"{component.name}.{module.path}"] = label
    return found


@cache
def block_order(family: Family) -> tuple[str, ...]:
    """Return the blocks of the family's UNet from the input to the output."""
    labels = set(_labels(family).values())

    def depth(label: str) -> tuple[int, str]:
        return (("IN", "MI", "OU").index(label[:2]), label)

    return tuple(sorted(labels, key=depth))


def check_vector(values: Sequence[float], family: Family) -> Mapping[str, float]:
    """Return block → weight of a vector (of a length that `VECTORS` has) for a family.

    Raises:
        UsageError: if it names other blocks than the family has.
    """
    names = VECTORS[len(values)]
    order = block_order(family)
    strange = [name for name in names if name != "BASE" and name not in order]
    if strange and len(values) != 26:
        raise UsageError(
            f"a block vector of {len(values)} values names blocks that {family.name} lacks",
            found=", ".join(strange),
            hint="12 or 20 values are for SDXL, 17 for SD1 and SD2, 26 for either",
        )
    return dict(zip(names, map(float, values), strict=True))


def preset(name: str) -> tuple[float, ...]:
    """Return the vector of a named preset.

    Raises:
        UsageError: if there is none of this name.
    """
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        raise UsageError(
            f"unknown preset {name!r}",
            expected=", ".join(PRESETS),
            hint=f"did you mean {close}?" if close else None,
        )
    return PRESETS[name]

"""Weights per block: the vectors and presets that the block-weight tools of the field share.

A vector gives one number for the text encoders (`BASE`) and one for each block that its length
names, in the numbering of the original single files: `IN00`…, `MID`, `OUT00`…. Vectors for Flux name
double blocks (`D00`…) and single blocks (`S00`…). The longer one also names both text encoders, the
layers that read the inputs, and the final layer.

Source: the vectors and presets of sd-webui-lora-block-weight, by their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from loramerge.adapter import Adapter, Site
from loramerge.errors import UsageError, listed, suggestion
from loramerge.families import Family
from loramerge.families.blocks import FLUX_DOUBLE, FLUX_SINGLE, flux_blocks, unet_blocks

__all__ = [
    "FLUX",
    "FLUX_LENGTHS",
    "LENGTHS",
    "PRESETS",
    "VECTORS",
    "block_label",
    "block_order",
    "check_vector",
    "flux_labels",
    "preset",
    "unet_family",
]


def _numbered(word: str, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{word}{n:02d}" for n in numbers)


# length → the blocks it names, in order
VECTORS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", *_numbered("IN", (4, 5, 7, 8)), "MID", *_numbered("OUT", range(6))),
    17: ("BASE", *_numbered("IN", (1, 2, 4, 5, 7, 8)), "MID", *_numbered("OUT", range(3, 12))),
    20: ("BASE", *_numbered("IN", range(9)), "MID", *_numbered("OUT", range(9))),
    26: ("BASE", *_numbered("IN", range(12)), "MID", *_numbered("OUT", range(12))),
    57: (*FLUX_DOUBLE, *FLUX_SINGLE),
    61: ("CLIP", "T5", "IN", *FLUX_DOUBLE, *FLUX_SINGLE, "OUT"),
}
FLUX_LENGTHS = (57, 61)
FLUX = "flux1"  # the family whose blocks these name
LENGTHS = "12 or 20 values for SDXL, 17 for SD1 and SD2, 26 for either, 57 or 61 for Flux"

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


def block_label(site: Site, family: Family) -> str | None:
    """Return `BASE`, `IN04`, `MID`, `OUT11`, or None for a module outside all blocks."""
    if site.component.startswith("text_encoder"):
        return "BASE"
    return unet_blocks(family).get(site.modules[0])


@cache
def block_order(family: Family) -> tuple[str, ...]:
    """Return the blocks of the family's UNet from the input to the output."""
    labels = set(unet_blocks(family).values())

    def depth(label: str) -> tuple[int, str]:
        return (("IN", "MI", "OU").index(label[:2]), label)

    return tuple(sorted(labels, key=depth))


def check_vector(values: Sequence[Any], family: Family) -> Mapping[str, Any]:
    """Return block → value of a vector (of a length that `VECTORS` has) for a family.

    Raises:
        UsageError: if it names blocks that the family lacks.
    """
    names = VECTORS[len(values)]
    order = block_order(family)
    strange = [name for name in names if name != "BASE" and name not in order]
    if strange and len(values) != 26:
        raise UsageError(
            f"a block vector of {len(values)} values names blocks that {family.name} lacks",
            found=listed(strange, 5),
            hint=f"{family.name} takes {_lengths_of(family)} values (docs/weights.md), or weights by "
            "depth, as in NAME:depth=0,1",
        )
    return dict(zip(names, values, strict=True))


def _lengths_of(family: Family) -> str:
    """Return the lengths of the block vectors that a family with a UNet takes: `17 or 26`."""
    order = {"BASE", *block_order(family)}
    fits = [
        n
        for n, names in VECTORS.items()
        if n not in FLUX_LENGTHS and (n == 26 or order >= {*names})
    ]
    return " or ".join(map(str, fits))


def unet_family(adapter: Adapter, values: Sequence[Any]) -> Family:
    """Return the adapter's family, for weights per block of its UNet.

    Args:
        values: the block vector; empty for weights by depth.

    Raises:
        UsageError: if its blocks are not known, or it is an adapter of Flux.
    """
    family = adapter.info.detection.naming
    if family is not None and block_order(family):
        return family
    if _is_flux(adapter):
        raise UsageError(
            f"a block vector of {len(values)} values is for the UNet of Stable Diffusion"
            if values
            else "weights by depth are for the UNet of Stable Diffusion",
            file=adapter.info.path,
            expected="57 or 61 values",
            found="an adapter of Flux",
        )
    raise UsageError(
        "weights per block need an adapter of a family whose blocks are known",
        file=adapter.info.path,
        found=adapter.info.detection.name or "an unknown family",
    )


def _is_flux(adapter: Adapter) -> bool:
    """Return whether an adapter is certainly of Flux."""
    if adapter.family is not None:
        return adapter.family.name == FLUX
    modules = (module for site in adapter.deltas for module in site.modules)
    return not adapter.info.detection.candidates and flux_blocks(modules).doubt is None


def flux_labels(adapter: Adapter, values: Sequence[Any]) -> Mapping[str, str]:
    """Return module name → block of an adapter of Flux.

    Raises:
        UsageError: if it is of another family, or its names do not prove that it is Flux.
    """
    family = adapter.info.detection.naming
    found = flux_blocks(module for site in adapter.deltas for module in site.modules)
    doubt = None if _is_flux(adapter) else found.doubt
    if family is not None and family.name != FLUX:
        doubt = f"an adapter of {adapter.info.detection.name}"
    if doubt is not None:
        raise UsageError(
            f"a block vector of {len(values)} values is for Flux",
            file=adapter.info.path,
            expected="modules of double_blocks and single_blocks, in any program's spelling",
            found=doubt,
            hint=LENGTHS
            if family
            else 'give weights by patterns on module names: match: {"*.3.*": 0}',
        )
    return found.labels


def preset(name: str) -> tuple[float, ...]:
    """Return the vector of a named preset.

    Raises:
        UsageError: if no preset has this name.
    """
    if name not in PRESETS:
        raise UsageError(
            f"unknown preset {name!r}",
            expected=", ".join(PRESETS),
            hint=suggestion(name, PRESETS),
        )
    return PRESETS[name]

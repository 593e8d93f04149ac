"""Detect files whose names have underscores where their dialect has dots, or the other way round.

No program reads such names as they are, so the result says which family they resemble.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.dialects import DIALECTS, stem_table
from loramerge.dialects.classify import Group
from loramerge.dialects.detection import Detection
from loramerge.dialects.fit import ENOUGH, Shapes, possible_families, same_shape

__all__ = ["detect_mangled"]

_NETWORKS = ("transformer", "unet", "diffusion_model")
_FLAT = "kohya"  # the dialect that writes underscores for all dots
_FLAT_HEAD = "lora_unet_"
_DOTTED = {"comfyui", "diffusers"}  # these two cover the names of both libraries


def _path(dialect: str, stem: str) -> str:
    """Return a stem without the dialect's prefix and the network's name."""
    module = DIALECTS[dialect].opaque_module(stem)
    network, _, path = module.partition(".")
    return path if network in _NETWORKS else module


def detect_mangled(groups: Sequence[Group], shapes: Shapes) -> Detection | None:
    """Return the result for a file that has underscores for dots, or dots for underscores, or None.

    With underscores for all dots its modules are those of a family, shapes included.
    """
    flat = {}
    for group in groups:
        path = _path(group.dialect, group.stem)
        flat[_FLAT_HEAD + path.replace(".", "_")] = (group, path)
    for family in possible_families(groups):
        table = stem_table(DIALECTS[_FLAT], family)
        known = [(*found, table[stem]) for stem, found in flat.items() if stem in table]
        told = [
            (shapes[group.dialect, group.stem], stem.shape)
            for group, _, stem in known
            if (group.dialect, group.stem) in shapes
        ]
        if (
            len(known) < ENOUGH * len(groups)
            or not told
            or not all(same_shape(*one) for one in told)
        ):
            continue
        dotted = {
            _path(name, stem)
            for name in {group.dialect for group in groups} | _DOTTED
            for stem in stem_table(DIALECTS[name], family)
        }
        odd = [path for _, path, _ in known if path not in dotted]
        if odd:
            dots = max(path.count(".") for path in odd) > max(path.count(".") for path in dotted)
            here, there = ("dots", "underscores") if dots else ("underscores", "dots")
            says = (
                f"resembles {family.name}, but {len(odd)} of {len(groups)} modules have {here} where "
                f"its names have {there}"
            )
            return Detection((), says, (family.name,), mangled=True)
    return None

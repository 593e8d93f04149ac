"""Base architectures as data: their modules, shapes, and names in each kind of checkpoint.

`FAMILIES` maps the words users type to `Family` literals. To add one: write a literal (with its own
templates if the architecture is new), add it to the tuple below, and the tests compare it with the
reference model.
"""

from __future__ import annotations

from loramerge.errors import FamilyError, nearest
from loramerge.families.flux import FLUX1
from loramerge.families.qwen import QWEN_IMAGE
from loramerge.families.sd3 import SD3, SD35_LARGE, SD35_MEDIUM
from loramerge.families.spec import Component, Family, Module, Parameter, Slot, Spelling, parameters
from loramerge.families.stable_diffusion import SD15, SD21, SDXL, SDXL_REFINER, TINY
from loramerge.families.wan import WAN

__all__ = [
    "FAMILIES",
    "Component",
    "Family",
    "Module",
    "Parameter",
    "Slot",
    "Spelling",
    "family",
    "parameters",
]

_ALL = (
    SD15, SD21, SDXL, SDXL_REFINER, FLUX1, SD3, SD35_MEDIUM, SD35_LARGE, QWEN_IMAGE, WAN, TINY,
)  # fmt: skip
FAMILIES: dict[str, Family] = {f.name: f for f in _ALL}


def family(name: str) -> Family:
    """Return a family by name.

    Raises:
        FamilyError: if there is none, naming the nearest.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        close = nearest(name, FAMILIES)
        raise FamilyError(
            f"unknown family {name!r}",
            expected=", ".join(FAMILIES),
            hint=f"did you mean {close}?" if close else None,
        ) from None

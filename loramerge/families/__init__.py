"""Base architectures as data: their modules, shapes, and names in each kind of checkpoint.

`FAMILIES` maps the words users type to `Family` literals. To add one: write a literal (with its own
templates if the architecture is new), add a line to the table below, and the tests compare it with the
reference model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from loramerge.errors import FamilyError, nearest
from loramerge.families.spec import Component, Family, Module, Parameter, Slot, Spelling, parameters

__all__ = [
    "FAMILIES",
    "UNETS",
    "Component",
    "Family",
    "Module",
    "Parameter",
    "Slot",
    "Spelling",
    "family",
    "parameters",
]

# those whose denoiser is a UNet; the others have a transformer
UNETS = ("sd15", "sd21", "sdxl", "sdxl-refiner", "tiny")
# family → the module and the name of its literal
_LITERALS = {
    "sd15": ("stable_diffusion", "SD15"),
    "sd21": ("stable_diffusion", "SD21"),
    "sdxl": ("stable_diffusion", "SDXL"),
    "sdxl-refiner": ("stable_diffusion", "SDXL_REFINER"),
    "tiny": ("stable_diffusion", "TINY"),
    "flux1": ("flux", "FLUX1"),
    "sd3": ("sd3", "SD3"),
    "sd35-medium": ("sd3", "SD35_MEDIUM"),
    "sd35-large": ("sd3", "SD35_LARGE"),
    "qwen-image": ("qwen", "QWEN_IMAGE"),
    "wan": ("wan", "WAN"),
    "flux2-dev": ("flux2", "FLUX2_DEV"),
    "flux2-klein-4b": ("flux2", "FLUX2_KLEIN_4B"),
    "flux2-klein-9b": ("flux2", "FLUX2_KLEIN_9B"),
    "z-image": ("z_image", "Z_IMAGE"),
    "lumina2": ("lumina2", "LUMINA2"),
    "hunyuan-video": ("hunyuan_video", "HUNYUAN_VIDEO"),
    "ltx-video": ("ltx_video", "LTX_VIDEO_2B"),
    "ltx-video-13b": ("ltx_video", "LTX_VIDEO_13B"),
    "anima": ("cosmos", "ANIMA"),
    "cosmos2-14b": ("cosmos", "COSMOS2_14B"),
}


class _Families(Mapping[str, Family]):
    """Families by name; the module of a literal is imported when one of its families is wanted."""

    def __getitem__(self, name: str) -> Family:
        module, literal = _LITERALS[name]
        found: Family = getattr(import_module(f"{__name__}.{module}"), literal)
        return found

    def __contains__(self, name: object) -> bool:
        return name in _LITERALS

    def __iter__(self) -> Iterator[str]:
        return iter(_LITERALS)

    def __len__(self) -> int:
        return len(_LITERALS)


FAMILIES: Mapping[str, Family] = _Families()


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

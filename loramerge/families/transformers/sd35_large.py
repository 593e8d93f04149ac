"""Stable Diffusion 3.5 large."""

from __future__ import annotations

from loramerge.families.sd3 import sd3
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = sd3(
    "sd35-large",
    "Stable Diffusion 3.5 large",
    width=2432,
    blocks=38,
    metadata=Metadata(
        "stable-diffusion-3-5-large",
        "5-large",
        "networks.lora_sd3",
        also=("stable-diffusion-3.5-large",),
    ),
)

"""Stable Diffusion 3."""

from __future__ import annotations

from loramerge.families.sd3 import sd3
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = sd3(
    "sd3",
    "Stable Diffusion 3",
    width=1536,
    blocks=24,
    normed=False,
    # sd-scripts states the size as the version
    metadata=Metadata("stable-diffusion-3-medium", "medium", "networks.lora_sd3", also=("sd3",)),
)

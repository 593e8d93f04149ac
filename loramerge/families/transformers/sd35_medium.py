"""Stable Diffusion 3.5 medium."""

from __future__ import annotations

from loramerge.families.sd3 import sd3
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = sd3(
    "sd35-medium",
    "Stable Diffusion 3.5 medium",
    width=1536,
    blocks=24,
    dual=13,
    metadata=Metadata(
        "stable-diffusion-3-5-medium",
        "5-medium",
        "networks.lora_sd3",
        also=("stable-diffusion-3.5-medium",),
    ),
)

"""Flux.2 dev."""

from __future__ import annotations

from loramerge.families.flux2 import flux2
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = flux2(
    "flux2-dev",
    "Flux.2 dev",
    width=6144,
    blocks=(8, 48),
    context=15360,
    guided=True,
    metadata=Metadata(
        "Flux.2-dev", "flux_2_dev", "networks.lora_flux_2", also=("flux2", "flux-2", "flux.2")
    ),
)

"""Flux.2 klein 9B."""

from __future__ import annotations

from loramerge.families.flux2 import flux2
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = flux2(
    "flux2-klein-9b",
    "Flux.2 klein 9B",
    width=4096,
    blocks=(8, 24),
    context=12288,
    guided=False,
    metadata=Metadata(
        "Flux.2-klein-9b",
        "flux_2_klein_9b",
        "networks.lora_flux_2",
        also=("flux2_klein_9b", "flux-2-klein-9b"),
    ),
)

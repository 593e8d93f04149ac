"""Flux.2 klein 4B."""

from __future__ import annotations

from loramerge.families.flux2 import flux2
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = flux2(
    "flux2-klein-4b",
    "Flux.2 klein 4B",
    width=3072,
    blocks=(5, 20),
    context=7680,
    guided=False,
    metadata=Metadata(
        "Flux.2-klein-4b",
        "flux_2_klein_4b",
        "networks.lora_flux_2",
        also=("flux2_klein_4b", "flux-2-klein-4b"),
    ),
)

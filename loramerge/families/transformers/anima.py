"""Anima, and Cosmos-Predict2 2B, whose transformer it has."""

from __future__ import annotations

from loramerge.families.cosmos import cosmos
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = cosmos(
    "anima",
    "Anima, and Cosmos-Predict2 2B",
    width=2048,
    blocks=28,
    conditioned=True,
    metadata=Metadata("anima-preview", "anima", "networks.lora_anima", also=("anima", "cosmos")),
)

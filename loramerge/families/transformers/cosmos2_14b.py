"""Cosmos-Predict2 14B."""

from __future__ import annotations

from loramerge.families.cosmos import cosmos
from loramerge.families.spec import Metadata

__all__ = ["FAMILY"]

FAMILY = cosmos(
    "cosmos2-14b",
    "Cosmos-Predict2 14B",
    width=5120,
    blocks=36,
    conditioned=False,
    metadata=Metadata(None, None, also=("cosmos",)),  # no trainer of kohya's line trains it
)

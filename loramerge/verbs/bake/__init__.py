"""Add adapters to a checkpoint."""

from __future__ import annotations

from loramerge.verbs.bake.parameters import Bake
from loramerge.verbs.bake.run import VERB, BakeResult, bake

__all__ = ["VERB", "Bake", "BakeResult", "bake"]

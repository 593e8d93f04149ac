"""Bases: what files a checkpoint has, which family it is, and where each module lies in them."""

from __future__ import annotations

from loramerge.checkpoint.checkpoint import Checkpoint, Place, open_checkpoint
from loramerge.checkpoint.files import CheckpointFile
from loramerge.checkpoint.scales import Scale

__all__ = ["Checkpoint", "CheckpointFile", "Place", "Scale", "open_checkpoint"]

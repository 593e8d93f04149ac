"""Bases: the files of a checkpoint, its family, and the places of its modules in them."""

from __future__ import annotations

from loramerge.checkpoint.checkpoint import Checkpoint, Place, open_checkpoint
from loramerge.checkpoint.files import CheckpointFile

__all__ = ["Checkpoint", "CheckpointFile", "Place", "open_checkpoint"]

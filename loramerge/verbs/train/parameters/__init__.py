"""The parameters of `train`: one field, one option, one word of a recipe; a file for each group."""

from __future__ import annotations

from loramerge.verbs.train.parameters.train import Train

__all__ = ["Train"]

"""Combine checkpoints of one family into one."""

from __future__ import annotations

from loramerge.verbs.merge.parameters import Merge
from loramerge.verbs.merge.run import VERB, MergeResult, merge

__all__ = ["VERB", "Merge", "MergeResult", "merge"]

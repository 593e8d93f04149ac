"""Make an adapter of the difference of two checkpoints."""

from __future__ import annotations

from loramerge.verbs.extract.parameters import Extract
from loramerge.verbs.extract.result import ExtractResult
from loramerge.verbs.extract.run import VERB, compute_extract, extract

__all__ = ["VERB", "Extract", "ExtractResult", "compute_extract", "extract"]

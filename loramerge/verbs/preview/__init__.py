"""Generate images of bases with adapters, side by side, from the same noise."""

from __future__ import annotations

from loramerge.verbs.preview.parameters import Preview
from loramerge.verbs.preview.result import PreviewResult
from loramerge.verbs.preview.run import VERB, compute_preview, preview

__all__ = ["VERB", "Preview", "PreviewResult", "compute_preview", "distinct_labels", "preview"]

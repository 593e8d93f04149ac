"""Re-rank adapters by SVD, one or a folder full, or show what each rank and size loses."""

from __future__ import annotations

from loramerge.verbs.resize.curve import Curve, CurveResult, compute_curve
from loramerge.verbs.resize.parameters import Resize, ResizeFiles
from loramerge.verbs.resize.run import (
    VERB,
    ResizeResult,
    compute_each,
    compute_resize,
    resize,
    resize_each,
    resize_files,
)

__all__ = [
    "VERB",
    "Curve",
    "CurveResult",
    "Resize",
    "ResizeFiles",
    "ResizeResult",
    "compute_curve",
    "compute_each",
    "compute_resize",
    "resize",
    "resize_each",
    "resize_files",
]

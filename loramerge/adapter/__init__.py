"""The canonical model: `Adapter`, one class per kind of delta, loading and saving."""

from __future__ import annotations

from loramerge.adapter.adapter import Account, Adapter, Info, Problem, widest
from loramerge.adapter.delta import Delta, Site
from loramerge.adapter.kinds.dense import Full, Replacement
from loramerge.adapter.kinds.foreign import Foreign
from loramerge.adapter.kinds.low_rank import LowRank, Scale, Scaled, Tucker

__all__ = [
    "Account",
    "Adapter",
    "Delta",
    "Foreign",
    "Full",
    "Info",
    "LowRank",
    "Problem",
    "Replacement",
    "Scale",
    "Scaled",
    "Site",
    "Tucker",
    "widest",
]

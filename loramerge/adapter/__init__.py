"""The canonical model: `Adapter`, one class per kind of delta, loading and saving."""

from __future__ import annotations

from loramerge.adapter.adapter import Account, Adapter, Info, Problem, widest
from loramerge.adapter.delta import Delta
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.lora import LowRank
from loramerge.adapter.kinds.replacement import Replacement
from loramerge.adapter.site import Site

__all__ = [
    "Account",
    "Adapter",
    "Delta",
    "Full",
    "Info",
    "LowRank",
    "Problem",
    "Replacement",
    "Scale",
    "Site",
    "widest",
]

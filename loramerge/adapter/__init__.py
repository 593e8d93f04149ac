"""The canonical model: `Adapter`, one class per kind of delta, loading and saving."""

from __future__ import annotations

from loramerge.adapter.adapter import Adapter
from loramerge.adapter.delta import Delta
from loramerge.adapter.info import Account, Info, Problem
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.lora import LowRank
from loramerge.adapter.site import Site
from loramerge.adapter.widths import widest

__all__ = [
    "Account",
    "Adapter",
    "Delta",
    "Full",
    "Info",
    "LowRank",
    "Problem",
    "Scale",
    "Site",
    "widest",
]

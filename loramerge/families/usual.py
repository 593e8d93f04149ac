"""The sizes of change that are usual among adapters of a family, as measured."""

from __future__ import annotations

from collections.abc import Callable

from loramerge.records import NamedTuple

__all__ = ["Usual"]


class Usual(NamedTuple):
    """The range of one measure among adapters at weight 1, as `benchmarks/usual_strength.py` finds it.

    Args:
        low: the smallest that was measured.
        high: the largest.
        adapters: how many were measured; few say little about others.
    """

    low: float
    high: float
    adapters: int

    def words(self, shown: Callable[[float], str], family: str = "") -> str:
        """Return `25 % to 45 % for tiny (from 2 adapters)`, each end as `shown` writes it."""
        counted = "1 adapter" if self.adapters == 1 else f"{self.adapters} adapters"
        whose = f" for {family}" if family else ""
        return f"{shown(self.low)} to {shown(self.high)}{whose} (from {counted})"

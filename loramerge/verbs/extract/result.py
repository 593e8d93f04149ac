"""The result of `extract`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loramerge.steps.adapters import AdapterResult

__all__ = ["ExtractResult"]


@dataclass(kw_only=True, repr=False)
class ExtractResult(AdapterResult):
    """An extracted adapter, and what of the difference it does not hold.

    Args:
        captured: share of ‖difference‖² that it holds, over all that differs by more than rounding.
        unchanged: number of weights and biases that are equal.
        rounding: modules whose difference is explained by rounding, which are left out.
        rounded_to: the types that it was rounded to.
        not_kept: sort of parameters that were not asked for → their number, and their share of
            ‖difference‖².
        one_side: parameters that only one of the checkpoints has.
        other_components: components that only one of them has.
        outside: number of tensors of the tuned checkpoint that belong to no module of the family.
    """

    headline = ("family", "modules", "ranks", "captured", "output")

    tuned: str
    base: str
    captured: float
    unchanged: int
    rounding: list[str]
    rounded_to: list[str]
    not_kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    one_side: list[str] = field(default_factory=list)
    other_components: list[str] = field(default_factory=list)
    outside: int = 0

    def json(self) -> dict[str, Any]:
        return {"tuned": self.tuned, "base": self.base} | super().json() | {
            "captured": self.captured,
            "unchanged": self.unchanged,
            "rounding": self.rounding,
            "rounded_to": self.rounded_to,
            "not_kept": self.not_kept,
            "one_side": self.one_side,
            "other_components": self.other_components,
            "outside": self.outside,
        }  # fmt: skip

"""The part of a change that remains when a checkpoint's values are rounded to their type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Moved", "Sums", "Survival", "Totals", "measure", "rounding_of", "totals_of"]


@dataclass
class Sums:
    """The sums of one module over its blocks of rows; see `Survival`."""

    asked: float = 0.0
    along: float = 0.0
    error: float = 0.0
    base: float = 0.0


def measure(sums: Sums, asked: Any, written: Any, base: Any) -> None:
    """Add the products of some rows to the sums; spoils `written`."""
    import numpy as np

    a, w, b = (x.reshape(-1) for x in (asked, written, base))
    sums.asked += float(np.dot(a, a))
    sums.along += float(np.dot(w, a))
    sums.base += float(np.dot(b, b))
    w -= a
    sums.error += float(np.dot(w, w))


@dataclass
class Moved:
    """The sums of one tensor that gets another form: ‖W_written − W‖² and ‖W‖²."""

    error: float = 0.0
    weights: float = 0.0

    def add(self, written: Any, exact: Any) -> None:
        """Add some rows."""
        import numpy as np

        rest = (written - exact).reshape(-1)
        self.error += float(np.dot(rest, rest))
        self.weights += float(np.dot(exact.reshape(-1), exact.reshape(-1)))


@dataclass(frozen=True)
class Survival:
    """The part of the requested change of one module that is in the written weights.

    A tensor that gets another form has one without a module, for its weights as a whole.

    Args:
        asked: ‖ΔW_asked‖_F².
        along: ⟨ΔW_written, ΔW_asked⟩.
        error: ‖ΔW_written − ΔW_asked‖_F².
        base: ‖W‖_F² of the rows before.
        rescaled: whether the scale of the stored float8 values had to grow.
        moved, weights: ‖W_written − W‖² and ‖W‖² of a tensor that gets another form, W with its change.
    """

    module: str
    tensor: str
    asked: float
    along: float
    error: float
    base: float
    rescaled: bool = False
    moved: float = 0.0
    weights: float = 0.0

    @property
    def survived(self) -> float:
        """Share of the change that remains after rounding; 1 where no change was asked for."""
        return self.along / self.asked if self.asked > 0 else 1.0

    @property
    def relative_error(self) -> float:
        """‖ΔW_written − ΔW_asked‖ / ‖ΔW_asked‖."""
        return math.sqrt(self.error / self.asked) if self.asked > 0 else 0.0

    @property
    def change(self) -> float | None:
        """‖ΔW_asked‖ / ‖W‖; None where the base is zero."""
        return math.sqrt(self.asked / self.base) if self.base > 0 else None


@dataclass(frozen=True)
class Totals:
    """The survival of all modules together.

    Args:
        survived: ⟨ΔW_written, ΔW_asked⟩ / ‖ΔW_asked‖².
        relative_error: ‖ΔW_written − ΔW_asked‖ / ‖ΔW_asked‖.
        change: ‖ΔW_asked‖ / ‖W‖; None where the base is zero.
        worst: the module with the largest relative error.
        rescaled: names of the tensors whose float8 scale had to grow.
    """

    survived: float
    relative_error: float
    change: float | None
    worst: Survival
    rescaled: list[str]


def totals_of(survivals: Sequence[Survival]) -> Totals | None:
    """Return the totals of a bake; None where no change was asked for."""
    asked = math.fsum(s.asked for s in survivals)
    if asked == 0:
        return None
    base = math.fsum(s.base for s in survivals)
    return Totals(
        survived=math.fsum(s.along for s in survivals) / asked,
        relative_error=math.sqrt(math.fsum(s.error for s in survivals) / asked),
        change=math.sqrt(asked / base) if base > 0 else None,
        worst=max((s for s in survivals if s.asked > 0), key=lambda s: s.relative_error),
        rescaled=sorted({s.tensor for s in survivals if s.rescaled}),
    )


def rounding_of(survivals: Sequence[Survival]) -> float | None:
    """Return ‖W_written − W‖ / ‖W‖ over all tensors that got another form; None if none did."""
    whole = math.fsum(s.weights for s in survivals)
    return math.sqrt(math.fsum(s.moved for s in survivals) / whole) if whole > 0 else None

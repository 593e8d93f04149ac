"""Scores of merged adapters, from the errors and the answers that they and others got. Plain numbers.

retention(base=0.20, alone=0.10, merged=0.12)     # 0.8: four fifths of what the adapter learned
groups(["a", "b", "c", "d"], 2, seed=0)           # each once: [['d', 'b'], ['a', 'c']]
interval([0.61, 0.64, 0.60, 0.66, 0.62])          # Interval(mean=0.626, half=0.0305)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "groups", "interval", "retention"]

# Student's t: 97.5 % lie below, by degrees of freedom.
_STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % interval (NaN for a single value)."""

    mean: float
    half: float

    def __str__(self) -> str:
        if math.isnan(self.half):
            return _plain(self.mean)
        return f"{_plain(self.mean)} ± {_plain(self.half)}"


def _plain(value: float) -> str:
    """Return a number with two decimals, few where it is large, with a minus sign."""
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values of independent seeds, with its 95 % interval (Student's t)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, math.nan)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (count - 1))
    return Interval(mean, _STUDENT[count - 1] * spread / math.sqrt(count))


def retention(base: float, alone: float, merged: float) -> float:
    """Return how much of what an adapter changes alone is there in a merge.

    1: as with the adapter alone; 0: as without it; below 0: worse than without it. Errors and shares of
    right answers serve alike.

    Raises:
        ZeroDivisionError: if the adapter alone changes nothing.
    """
    return (merged - base) / (alone - base)


def groups(names: Sequence[str], size: int, seed: int) -> list[list[str]]:
    """Return a random partition into groups, so that each name counts once.

    Raises:
        ValueError: if the names cannot be shared out.
    """
    if len(names) % size:
        raise ValueError(f"{len(names)} names do not make groups of {size}")
    order = list(names)
    random.Random(f"groups {seed}").shuffle(order)
    return [order[i : i + size] for i in range(0, len(order), size)]

"""Inner products of two deltas, and the figures that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """⟨A, A⟩, ⟨B, B⟩ and ⟨A, B⟩ of two deltas; they add up over sites."""

    aa: float
    bb: float
    ab: float

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.aa + other.aa, self.bb + other.bb, self.ab + other.ab)

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ / ‖A‖‖B‖, or None where one is zero."""
        size = math.sqrt(self.aa * self.bb)
        return max(-1.0, min(1.0, self.ab / size)) if size > 0 else None

    @property
    def distance(self) -> float:
        """‖A − B‖ / max(‖A‖, ‖B‖), 0 where both are zero."""
        most = max(self.aa, self.bb)
        return math.sqrt(max(0.0, self.aa + self.bb - 2 * self.ab) / most) if most > 0 else 0.0

    @property
    def ratio(self) -> float | None:
        """‖B‖ / ‖A‖, or None where A is zero."""
        return math.sqrt(self.bb / self.aa) if self.aa > 0 else None

    @property
    def fit(self) -> float | None:
        """The c that makes ‖B − c·A‖ smallest, or None where A is zero."""
        return self.ab / self.aa if self.aa > 0 else None

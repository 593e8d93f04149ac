"""The sums by which two checkpoints are compared: of a parameter, a block, a part, and of all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from loramerge.adapter import Site

__all__ = ["AVERAGE", "OTHER", "Gap", "Likeness", "Measured"]

AVERAGE = "running average"  # the part of the weights' running averages
OTHER = "other tensors"


@dataclass(frozen=True)
class Gap:
    """The distance of parameters that two checkpoints have; sums, which add up.

    Args:
        tensors: number of parameters; differing: of those whose numbers differ.
        rounded: of those in which rounding to the types of the two explains every difference.
        a, b: ‖A‖² and ‖B‖² of those that differ; moved: ‖B − A‖² of them.
        elements, changed: numbers in all parameters, and in those that differ.
    """

    tensors: int = 0
    differing: int = 0
    rounded: int = 0
    a: float = 0.0
    b: float = 0.0
    moved: float = 0.0
    elements: int = 0
    changed: int = 0

    def __add__(self, other: Gap) -> Gap:
        return Gap(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )

    @property
    def distance(self) -> float:
        """‖B − A‖ / the larger of ‖A‖ and ‖B‖, over the parameters that differ; 0 without any."""
        larger = max(self.a, self.b)
        if not self.differing:
            return 0.0
        return math.sqrt(self.moved / larger) if 0.0 < larger < math.inf else math.inf

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ / (‖A‖ ‖B‖) over the parameters that differ; None where a norm is 0 or not finite."""
        product = math.sqrt(self.a * self.b)
        if not 0.0 < product < math.inf:
            return None
        return min(1.0, max(-1.0, (self.a + self.b - self.moved) / (2 * product)))


@dataclass(frozen=True)
class Measured:
    """One parameter of both checkpoints.

    Args:
        part: component, VAE, or another part of a checkpoint that holds it.
        block: of the model.
        types: the types in which the two store it.
        matrix: whether it has two axes or more.
    """

    site: Site
    part: str
    block: str
    gap: Gap
    types: tuple[str, str]
    matrix: bool


@dataclass
class Likeness:
    """Two checkpoints of one family, compared.

    Args:
        measured: every parameter that both have.
        constants: number of tensors of both beside the weights, compared by their bytes;
            other_constants: names of those that differ.
        only_a, only_b: part → names of tensors that the other lacks.
        misfits: parameters with another shape in each, with both.
        unreadable: parameters that are stored in a way which cannot be read.
    """

    measured: list[Measured] = field(default_factory=list)
    constants: int = 0
    other_constants: list[str] = field(default_factory=list)
    only_a: dict[str, list[str]] = field(default_factory=dict)
    only_b: dict[str, list[str]] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def total(self) -> Gap:
        """The sums over all parameters."""
        return _sum(self.measured)

    @property
    def matrices(self) -> Gap:
        """The sums over the parameters with two axes or more."""
        return _sum(one for one in self.measured if one.matrix)

    @property
    def parts(self) -> dict[str, Gap]:
        """Part → sums."""
        return _by(self.measured, "part")

    @property
    def blocks(self) -> dict[str, Gap]:
        """Block → sums."""
        return _by(self.measured, "block")

    @property
    def largest(self) -> Measured | None:
        """The parameter with the largest distance, None where none differs."""
        found = [one for one in self.measured if one.gap.differing]
        return max(found, key=lambda one: one.gap.distance, default=None)


def _sum(measured: Iterable[Measured]) -> Gap:
    return sum((one.gap for one in measured), Gap())


def _by(measured: Iterable[Measured], name: str) -> dict[str, Gap]:
    found: dict[str, Gap] = {}
    for one in measured:
        key = getattr(one, name)
        found[key] = found.get(key, Gap()) + one.gap
    return found

"""The cases: operators, final scales and parameters from the registry, and rules of `resize`.

A new operator appears by itself, with all scales. Its parameters are varied if their name is in
`VALUES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loramerge.algebra.operators import OPERATORS
from loramerge.algebra.scale import SCALES

__all__ = ["FULL_RANK", "NUMBERS", "OF_RANKS", "RULES", "VARIED", "Case", "cases", "operators"]

FULL_RANK = 64  # of the layers: results of operators on elements are not cut to a lower rank
VARIED = (4,)  # numbers of adapters with which parameters are varied
NUMBERS = (0.25, 0.5, 0.75)  # scales that are numbers, for the sum

# parameter → values, beside the default
VALUES: dict[str, tuple[Any, ...]] = {
    "density": (0.2, 0.5, 0.8),
    "gamma": (0.0, 0.05),
    "epsilon": (0.05, 0.5),
    "common": (0.2, 0.5),
    "directions": (1, 2, 8),
    "shared_rank": (4, 8, 32),
    "ridge": (0.03, 0.3, 1.0),
    "select": (0.1, 0.5),
    "limit": (1.0, 2.0, 4.0),
    "power": (0.0, 0.25, 0.75),
    "strength": (0.5,),
    "protected": (1,),
}

# rule of resize → values that make an adapter smaller and smaller
RULES: dict[str, tuple[Any, ...]] = {
    "rank": (4, 3, 2, 1),
    "energy": (0.99, 0.95, 0.9, 0.7),
    "ratio": (3.0, 2.0, 1.5, 1.2),
    "cumulative": (0.95, 0.9, 0.7, 0.5),
    "max_error": (0.1, 0.2, 0.3, 0.5),
    "max_size": (4, 3, 2, 1),  # as large as this uniform rank
}
OF_RANKS = ("rank", "max_size")  # their values are ranks, and they can be fair to each adapter


@dataclass(frozen=True)
class Case:
    """A method of `mix` with its scale and parameters; those not given have their defaults."""

    table: str
    method: str
    scale: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A name that tells all cases apart."""
        words = [self.method, *([f"scale={self.scale}"] if self.scale else [])]
        return " ".join((*words, *(f"{name}={value}" for name, value in self.parameters.items())))

    def takes(self, count: int) -> bool:
        """Return whether it is tried with so many adapters."""
        least, most = OPERATORS[self.method].inputs
        defined = least <= count and (most is None or count <= most)
        return defined and (self.table != "parameters" or count in VARIED)


def operators() -> list[Any]:
    """Return the operators in the order of lists."""
    return sorted(OPERATORS.values(), key=lambda one: (one.order, one.name))


def cases() -> Iterator[Case]:
    """Yield every case: operators first, then scales, then parameters."""
    for one in operators():
        yield Case("operators", one.name)
    for one in operators():
        yield from (Case("scales", one.name, scale) for scale in SCALES if scale != one.scale)
    yield from (Case("scales", "linear", str(number)) for number in NUMBERS)
    for one in operators():
        for parameter in one.own_parameters:
            for value in VALUES.get(parameter.name, ()):
                if value != parameter.default:
                    yield Case("parameters", one.name, None, {parameter.name: value})
        if one.space == "elements":
            yield Case("parameters", one.name, None, {"rank": FULL_RANK})

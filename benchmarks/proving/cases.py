"""The cases: operators, final scales and parameters from the registry.

A new operator appears by itself, with all scales. Its parameters are varied if their name is in
`VALUES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.algebra.operators import OPERATORS
from loramerge.algebra.scale import SCALES

__all__ = [
    "NUMBERS", "VARIED", "Case", "operator_cases", "operators", "parameter_cases", "scale_cases",
]  # fmt: skip

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


def operator_cases() -> Iterator[Case]:
    """Yield every operator with its default scale and parameters."""
    return (Case("operators", one.name) for one in operators())


def scale_cases(scales: Sequence[str] = SCALES) -> Iterator[Case]:
    """Yield every operator with the scales that are not its default, then the sum with numbers.

    Args:
        scales: which are tried.
    """
    for one in operators():
        yield from (Case("scales", one.name, scale) for scale in scales if scale != one.scale)
    yield from (Case("scales", "linear", str(number)) for number in NUMBERS)


def parameter_cases(full_rank: int) -> Iterator[Case]:
    """Yield every operator with one parameter changed at a time.

    Args:
        full_rank: of the layers: results of operators on elements are not cut to a lower rank.
    """
    for one in operators():
        for parameter in one.own_parameters:
            for value in VALUES.get(parameter.name, ()):
                if value != parameter.default:
                    yield Case("parameters", one.name, None, {parameter.name: value})
        if one.space == "elements":
            yield Case("parameters", one.name, None, {"rank": full_rank})

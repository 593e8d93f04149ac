"""The ingredients of one parameter of a merge: where inputs store it, and how they are combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from loramerge.adapter import Site
from loramerge.algebra.method import Method
from loramerge.checkpoint import Place
from loramerge.stream.edits import Edit
from loramerge.stream.survival import Survival

__all__ = ["Blend", "Blended", "Blends", "Ingredient"]


@dataclass(frozen=True)
class Ingredient:
    """One input of a parameter.

    Args:
        place: where the input stores the parameter.
        weight: the user's coefficient, not 0.
        position: of the input among all, from 0.
    """

    place: Place
    weight: float
    position: int


@dataclass(frozen=True)
class Blend:
    """The making of one parameter of the result.

    Args:
        site: the module, alone.
        target: where the result stores the parameter.
        terms: what is combined; with a base there may be none.
        method: an operator on `scalars` or `elements`.
        on_base: whether it combines changes from a base, and is added to that.
        base: where the base stores the parameter; None counts as zeros.
        first: where the first input stores it, from which changes are measured without a base; None is
            the target.
        edits: changes of adapters to rows of the target, which are added to the result.
    """

    site: Site
    target: Place
    terms: tuple[Ingredient, ...]
    method: Method
    on_base: bool = False
    base: Place | None = None
    first: Place | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def is_copy(self) -> bool:
        """True if the result is the parameter of the first input, unchanged."""
        alone = len(self.terms) == 1 and self.base is None and not self.on_base and not self.edits
        return alone and self.terms[0].weight == 1.0 and self.terms[0].place == self.target

    @property
    def kind(self) -> str:
        """The numpy type that it is computed in.

        Operators on elements see changes, which float32 holds as they are if the weights are of a half
        type: then it is enough for them, too.
        """
        places = (self.target, self.base, *(term.place for term in self.terms))
        types = {place.tensor.dtype for place in places if place is not None}
        wide = {"F64", "F32"} if self.method.operator.space == "elements" else {"F64"}
        return "float64" if types & wide else "float32"


# file → tensor → the parameters that it holds
Blends = Mapping[PurePosixPath, Mapping[str, Sequence[Blend]]]


@dataclass(frozen=True)
class Blended:
    """One parameter of the result: its change, and what rounding left of it.

    Args:
        survival: what was asked for is the change from the base, or from the first input.
        products: positions of two inputs → ⟨ΔWᵢ, ΔWⱼ⟩ of their changes from the base; empty without one.
        factor: of the final scale, which the result contains.
        copied: whether it is the parameter of the first input, at most in another type.
    """

    survival: Survival
    products: Mapping[tuple[int, int], float]
    factor: float = 1.0
    copied: bool = False

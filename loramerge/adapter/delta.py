"""The delta: ΔW of one site, as every kind implements it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

from loramerge.errors import NotLowRank, UnsupportedKind
from loramerge.files.tensors import Tensor, same_bytes
from loramerge.records import NamedTuple, record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = [
    "AddRows",
    "AlphaPlace",
    "Content",
    "Delta",
    "Facts",
    "Pair",
    "ReadRows",
    "ScaleOf",
    "ScaledFactors",
    "identical",
]

# (start, stop, base rows, out, fresh): put ΔW[start:stop] into `out` if `fresh`, else add it.
# `base rows` are the same rows of the unmodified weight, as floats.
AddRows = Callable[[int, int, Any, Any, bool], None]
# (start, stop) → those rows of the unmodified weight, as floats, flattened to `(rows, in·kh·kw)`.
ReadRows = Callable[[int, int], Any]
# where alpha is written: beside the factors, in a configuration, or nowhere (folded into them)
AlphaPlace = Literal["beside", "apart", "folded"]


@record
class Facts:
    """Facts about a kind that callers ask for, rather than for its class.

    Args:
        plain: it is an ordinary LoRA of two factors.
        compact: its low-rank form, if it has one, is larger than its stored form, so that a sum may
            be smaller as a full difference.
        whole: ΔW itself is stored.
        replaces: its tensor takes the place of the base's.
        computable: ΔW can be computed at all.
        weighs: a file can hold it at another weight than 1.
        optional: a base that lacks the parameter is not an error.
        constrained: its alpha is a constraint, of which 0 is none.
        magnitudes: DoRA's magnitudes may stand beside its tensors.
        tied: on an embedding it also changes an output layer that shares its weight.
        peft_type: the type of PEFT configuration that holds it, None where none does.
    """

    plain: bool = False
    compact: bool = False
    whole: bool = False
    replaces: bool = False
    computable: bool = True
    weighs: bool = True
    optional: bool = False
    constrained: bool = False
    magnitudes: bool = False
    tied: bool = False
    peft_type: str | None = None


class ScaleOf(Protocol):
    """A scale, as callers read it; see `kinds.bases.scale.Scale`."""

    @property
    def alpha(self) -> float | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def root(self) -> bool: ...
    @property
    def weight(self) -> float: ...
    @property
    def unchanged(self) -> bool: ...
    def value(self, rank: int | None) -> float: ...


class ScaledFactors(Protocol):
    """Factors with one scale before them.

    Attributes:
        dim: the rank as the file counts it, the inner size of the factors; None where none shows.
        factor: what their product is multiplied by.
    """

    @property
    def dim(self) -> int | None: ...
    @property
    def factor(self) -> float: ...
    @property
    def scale(self) -> ScaleOf: ...


class Pair(ScaledFactors, Protocol):
    """Two factors, `up (out, r)` and `down`, with one scale before them."""

    @property
    def up(self) -> Tensor: ...
    @property
    def down(self) -> Tensor: ...
    @property
    def rank(self) -> int: ...
    def stated(self, dtype: str | None, alpha: float) -> dict[str, Tensor]:
        """Return the tensors to write with a given alpha; see `kinds.bases.factored.Factored`."""
        ...


class Content(NamedTuple):
    """The values that determine a delta, apart from its base.

    Args:
        numbers: what ΔW depends on beside its tensors: scale, weight, axis, constraint, size of blocks.
        free: deltas that need no base and that say the rest; only of kinds that depend on the base.
    """

    numbers: tuple[float, ...] = ()
    free: tuple[Delta, ...] = ()


class Delta(ABC):
    """ΔW of one site. Immutable; one final class per kind.

    Attributes:
        kind: `lora`, `tucker`, `loha`, `lokr`, `dora`, … as `inspect` names it.
        shape: `(out, in)`, `(out, in, kh, kw)`, or `(n,)` for biases and norms; 0 where neither the
            file nor the family tells a size.
        needs_base: whether ΔW depends on the weight it is added to.
        facts: further facts about the kind.
    """

    if TYPE_CHECKING:  # of the class for some kinds, fields or properties for others; never set

        @property
        def kind(self) -> str: ...
        @property
        def shape(self) -> tuple[int, ...]: ...
        @property
        def needs_base(self) -> bool: ...
        @property
        def facts(self) -> Facts: ...
    else:
        needs_base = False
        facts = Facts()

    @property
    def flat_shape(self) -> tuple[int, int]:
        """`(out, in·kh·kw)`; a vector counts as one column."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def form(self) -> str:
        """The kind, and the variant that programs treat differently: `dora of inputs`, `dora of
        outputs over loha`, `lokr with a core`."""
        return self.kind

    @property
    def core(self) -> ScaledFactors | None:
        """The factors with one scale that the kind is made of, if it is."""
        return None

    @property
    def pair(self) -> Pair | None:
        """The delta itself, if it is two factors with one scale and nothing else."""
        return None

    @property
    def rank(self) -> int | None:
        """Rank of the exact low-rank form, or None if there is none."""
        return None

    @property
    def alpha(self) -> float | None:
        """The alpha the file states (scale = alpha / rank), or None where it states none."""
        return None

    # --- what it changes

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        """Return the exact low-rank form with the scale folded into up.

        Returns:
            up `(out, r)` and down `(r, in·kh·kw)` of numpy dtype `dtype`.

        Raises:
            NotLowRank: if this kind has no such form.
        """
        raise NotLowRank(f"a delta of kind {self.kind} has no exact low-rank form")

    @abstractmethod
    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        """Return ΔW as an array of `shape`.

        Args:
            base: the unmodified weight, needed where `needs_base`.
            dtype: numpy float dtype of the computation and the result.
        """

    @abstractmethod
    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        """Return a function that puts or adds row ranges of ΔW (flattened to `(out, in·kh·kw)`).

        Its memory is that of the factors and one block of rows, never of ΔW; only BOFT, whose
        stages mix all rows, holds the whole weight.

        Args:
            read: gives any rows of the unmodified weight, for kinds whose rows depend on others.
        """

    @abstractmethod
    def scaled(self, weight: float) -> Delta:
        """Return `weight · ΔW`, exactly."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of `shape` can be changed so (1×1 kernels apart)."""
        return (shape[0], math.prod(shape[1:])) == self.flat_shape

    def content(self) -> Content:
        """Return all that determines the delta: two are equal if their contents are."""
        return Content()

    # --- how it is stored

    @abstractmethod
    def stored(self) -> Mapping[str, Tensor]:
        """Return the tensors of the file, by role."""

    @abstractmethod
    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        """Return the tensors to write, by role.

        Args:
            dtype: safetensors name of the float type to write, or None to keep the stored one.
            alpha: where the target keeps alpha. Where that is apart from the tensors, the scale is
                left out of them, its sign excepted.

        Raises:
            NumericsError: if a value does not fit the type.
        """

    def at(self, shape: tuple[int, ...]) -> Delta:
        """Return the delta of a weight of a shape, where neither the file nor the family tells it.

        Raises:
            ShapeError: if it is none of such a weight.
        """
        return self

    def conformed(self, shape: tuple[int, ...]) -> Delta:
        """Return the same delta with the axes of `shape`, if they differ only in 1×1 kernels."""
        return self

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        """Return the same ΔW under other roles, where `roles` has no words for its own.

        Args:
            beside: the delta of the weight, where this is one of the bias.
        """
        return self

    # --- rows of sites that are stored fused

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        """Return whether each part of the rows is a delta for itself, which `split` gives.

        Args:
            bounds: where each part begins, and the end.
        """
        return True

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Delta:
        """Return the delta of row ranges (first, last plus one), one after the other.

        Raises:
            UnsupportedKind: if this delta cannot be cut so.
        """
        raise UnsupportedKind(
            f"a delta of kind {self.kind} cannot be cut into these rows",
            hint="keep the dialect of the file, which stores these modules as one",
        )

    def split(self, bounds: Sequence[int]) -> list[Delta | None]:
        """Cut the delta at rows, exactly and at the smallest rank; None stands for a zero part.

        Args:
            bounds: where each part begins, and the end.

        Raises:
            UnsupportedKind: if this kind cannot be cut.
        """
        return [self.rows((pair,)) for pair in pairwise(bounds)]

    def joined(
        self, deltas: Sequence[Delta], fuse: Callable[[Sequence[Delta]], Delta]
    ) -> Delta | None:
        """Return the delta whose rows are those of deltas one after the other, None if none is exact.

        Used only for kinds that depend on the base; the others are joined by their factors or values.

        Args:
            deltas: of which this is the first.
            fuse: joins as many deltas that need no base.
        """
        return None


def identical(first: Delta, second: Delta) -> bool:
    """Return whether two deltas are of one kind and hold the same tensors and numbers."""
    ours, theirs = first.stored(), second.stored()
    one, other = first.content(), second.content()
    free = zip(one.free, other.free, strict=False)
    return (
        first.kind == second.kind
        and ours.keys() == theirs.keys()
        and one.numbers == other.numbers
        and all(same_bytes(ours[role], theirs[role]) for role in ours)
        and all(a.content().numbers == b.content().numbers for a, b in free)
    )

"""Deltas that stored tensors and numbers of a configuration determine, without the base's values.

PEFT has many such kinds. Some tensors of them tell only a part of the weight's shape, or nothing
of it: then the family gives it, or the base, which is needed for that alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from typing import cast as cast_type

from loramerge.adapter.delta import AddRows, AlphaPlace, Content, Delta, ReadRows
from loramerge.adapter.floats import put
from loramerge.adapter.kinds.bases.dependent import Dependent
from loramerge.adapter.kinds.bases.rotation import encoded_parts
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Stored
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.lora import LowRank
from loramerge.errors import AdapterError, NotLowRank, Setting, ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = [
    "Computed",
    "ComputedPair",
    "ComputedWhole",
    "OfBase",
    "flat",
    "number",
    "require",
    "suffixes",
    "whole_difference",
]


class Computed(Delta):
    """A delta that its tensors determine together with the shape of the weight; abstract.

    A final class adds its fields, and `may_fit` if its file does not tell the shape. A file can
    hold it at weight 1 only: at another weight it becomes an ordinary LoRA or a difference, as
    soon as its shape is known.
    """

    parts: Mapping[str, Tensor]
    weight: float

    @property
    def needs_base(self) -> bool:
        """True as long as the shape of the weight is not known."""
        return not all(self.shape)

    @property
    def numbers(self) -> tuple[float, ...]:
        """Numbers beside the weight that ΔW depends on."""
        return ()

    def content(self) -> Content:
        free = tuple(Full.of(tensor, "diff") for tensor in self.parts.values())
        return Content((self.weight, *self.numbers), free if self.needs_base else ())

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.may_fit(shape) if self.needs_base else super().fits(shape)

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        """Return whether the weight can be of a shape, where the file does not tell it."""
        return True

    def at(self, shape: tuple[int, ...]) -> Delta:
        if not self.needs_base:
            return self
        if not self.fits(shape):
            raise ShapeError(
                f"the base does not have the shape of this {self.kind} delta",
                expected=list(self.shape),
                found=list(shape),
            )
        return self._replaced(shape=shape, weight=1.0).scaled(self.weight)

    def of_module(self, like: tuple[int, ...] | None) -> Self:
        """Return the delta at the shape that the family has for its module, if that fits."""
        known = like is not None and self.needs_base and self.may_fit(like)
        return self._replaced(shape=like) if known else self

    def _replaced(self, **fields: Any) -> Self:
        changed: Self = replace(cast_type(Any, self), **fields)
        return changed

    @abstractmethod
    def plain(self) -> Delta:
        """Return the delta as an ordinary LoRA or a difference, computed when it is read."""

    def scaled(self, weight: float) -> Delta:
        if weight == 1.0:
            return self
        if self.needs_base:
            return self._replaced(weight=self.weight * weight)
        return self.plain().scaled(weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Delta:
        if self.needs_base:
            return super().rows(ranges)
        return self.plain().rows(ranges)

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        return self if self.needs_base or self.parts.keys() <= roles else self.plain()

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        if self.weight != 1.0:
            raise AdapterError(
                f"a {self.kind} delta cannot be stored at a weight other than 1",
                found=self.weight,
                hint=("give its base: ", Setting("base", "B")),
            )
        return encoded_parts(self.parts, dtype)

    def _known(self, base: Array | None) -> Delta:
        """Return the delta at the shape of the base.

        Raises:
            AdapterError: without a base, where that is needed.
        """
        if base is None:
            raise AdapterError(
                f"the shape of the weight that this {self.kind} delta changes is not known",
                hint=("give the base it is for: ", Setting("base", "B")),
            )
        return self.at(base.shape)


class ComputedPair(Computed):
    """A computed delta of low rank; a final class gives `pair_of`."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The inner size of the factors."""

    @abstractmethod
    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        """Return up `(out, r)` and down `(r, in·kh·kw)` for the known shape."""

    @property
    def rank(self) -> int | None:
        known = not self.needs_base
        return self.dim if known and self.dim < min(self.flat_shape) else None

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        if self.rank is None:
            raise NotLowRank(
                f"the low-rank form of this {self.kind} delta is as large as ΔW itself"
            )
        return self.pair_of(dtype)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if self.needs_base:
            return self._known(base).dense(dtype=dtype)
        up, down = self.pair_of(dtype)
        return (up @ down).reshape(self.shape)

    def plain(self) -> Delta:
        if self.rank is None:
            return whole_difference(self.shape, self.dense)
        up, down = (self.shape[0], self.dim), (self.dim, self.flat_shape[1])
        found = LowRank.of(
            Derived("F32", up, lambda: self.pair_of("float64")[0].astype("float32")),
            Derived("F32", down, lambda: self.pair_of("float64")[1].astype("float32")),
            Scale(float(self.dim)),
        )
        return found if len(self.shape) == 2 else replace(found, shape=self.shape)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        up, down = self.pair_of(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(up[start:stop] @ down, out, fresh)

        return add


class ComputedWhole(Computed):
    """A computed delta of no low rank; a final class gives `whole`. It is held while rows are made."""

    @abstractmethod
    def whole(self, dtype: str) -> Array:
        """Return ΔW of the known shape, flattened to `(out, in·kh·kw)`."""

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if self.needs_base:
            return self._known(base).dense(dtype=dtype)
        return self.whole(dtype).reshape(self.shape)

    def plain(self) -> Delta:
        return whole_difference(self.shape, self.dense)

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = self.whole(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(rows[start:stop], out, fresh)

        return add


def whole_difference(shape: tuple[int, ...], dense: Callable[[], Array]) -> Full:
    """Return an ordinary difference, computed when it is read."""
    value = Derived("F32", shape, lambda: dense().astype("float32"))
    return Full.of(value, "diff" if len(shape) > 1 else "diff_b")


class OfBase(Dependent):
    """A delta that stored tensors determine together with the values of the base; abstract.

    A final class adds its fields, `fits` and `changer`.
    """

    parts: Mapping[str, Tensor]

    def scaled(self, weight: float) -> Self:
        changed: Self = replace(cast_type(Any, self), weight=self.weight * weight)
        return changed

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        return False

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        self.require_whole()
        return encoded_parts(self.parts, dtype)


# --- what makers of such kinds share


def number(stored: Stored, name: str, default: float) -> float:
    """Return a number of a module's configuration; the default is PEFT's, for older configurations.

    Raises:
        ShapeError: if the configuration is missing, or its value is not a number.
    """
    value = stored.config.get(name, default)
    if not stored.config or isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ShapeError(
            f"{name} is not a number in adapter_config.json, on which this change depends",
            module=stored.module,
            found="no adapter_config.json" if not stored.config else repr(value),
        )
    return float(value)


def require(stored: Stored, fits: bool, kind: str, expected: str) -> None:
    """Refuse tensors that do not fit together.

    Raises:
        ShapeError: with what was expected, and the shapes.
    """
    if not fits:
        raise ShapeError(
            f"the tensors of this {kind} do not fit together",
            module=stored.module,
            expected=expected,
            found=", ".join(f"{role} {list(t.shape)}" for role, t in stored.tensors.items()),
        )


def suffixes(*words: str, spelled: Callable[[str], str] = str) -> dict[str, tuple[str, ...]]:
    """Return role → ends of keys in PEFT's files, whose words are the roles, with the adapter's name
    or without."""
    return {word: (f".{spelled(word)}", f".{spelled(word)}.default") for word in words}


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return `(out, in·kh·kw)`."""
    return shape[0], math.prod(shape[1:])

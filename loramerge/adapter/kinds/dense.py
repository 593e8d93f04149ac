"""Deltas stored whole: full differences, biases, norms, and tensors that replace the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Delta, ReadRows, cast, times, values
from loramerge.errors import AdapterError
from loramerge.files.tensors import ArrayTensor, RawTensor, Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Full", "Replacement"]


@final
@dataclass(frozen=True, eq=False)
class Full(Delta):
    """`ΔW = weight · value`. No alpha.

    Args:
        value: the difference, of the shape of the parameter.
        role: the role it is stored under: `diff`, `diff_b`, `w_norm` or `b_norm`.
        kind: `full`, `bias` or `norm`, which follows from the role.
    """

    value: Tensor
    role: str
    shape: tuple[int, ...]
    weight: float = 1.0
    kind: str = "full"

    @classmethod
    def of(cls, value: Tensor, role: str) -> Full:
        """Make the delta of a stored difference."""
        kind = {"diff": "full", "diff_b": "bias"}.get(role, "norm")
        return cls(value, role, value.shape, kind=kind)

    def with_array(self, array: Array) -> Full:
        """Return a delta of the same kind and shape with computed values."""
        return replace(self, value=ArrayTensor(array.reshape(self.shape)), weight=1.0)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.weight,)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        return times(values(self.value, dtype), self.weight)

    def scaled(self, weight: float) -> Full:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Full:
        value = rows_of(self.value, ranges)
        return replace(self, value=value, shape=value.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {self.role: self.value}

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        target = dtype or self.value.dtype
        if self.weight == 1.0 and target == self.value.dtype:
            return {self.role: self.value}
        if self.value.unread:
            return {self.role: RawTensor(b"", target, self.value.shape)}
        wide = "float64" if "F64" in (target, self.value.dtype) else "float32"
        return {self.role: cast(self.dense(dtype=wide), target, self.role)}

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = self.dense(dtype=dtype).reshape(self.flat_shape)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            if fresh:
                out[:] = rows[start:stop]
            else:
                out += rows[start:stop]

        return add


@final
@dataclass(frozen=True, eq=False)
class Replacement(Delta):
    """`W' = W + weight · (value − W)`: a tensor that takes the place of the base's.

    PEFT's `modules_to_save` are such.
    """

    value: Tensor
    role: str
    shape: tuple[int, ...]
    weight: float = 1.0

    needs_base: ClassVar[bool] = True
    kind: ClassVar[str] = "set"  # type: ignore[misc]

    @classmethod
    def of(cls, value: Tensor, role: str) -> Replacement:
        """Make the delta of a stored replacement."""
        return cls(value, role, value.shape)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.weight,)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if base is None:
            raise AdapterError(
                "a replacement tensor is a difference only against a base",
                hint="bake the adapter, or drop this module",
            )
        change: Array = self.weight * (values(self.value, dtype) - base.astype(dtype))
        return change

    def free_parts(self) -> tuple[Delta, ...]:
        return (Full.of(self.value, "diff"),)

    def scaled(self, weight: float) -> Replacement:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Replacement:
        value = rows_of(self.value, ranges)
        return replace(self, value=value, shape=value.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {self.role: self.value}

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        if self.weight != 1.0:
            raise AdapterError(
                "a replacement tensor cannot be stored at a weight other than 1",
                found=self.weight,
                hint="bake the adapter instead",
            )
        target = dtype or self.value.dtype
        if target == self.value.dtype:
            return {self.role: self.value}
        return {self.role: cast(values(self.value, "float64"), target, self.role)}

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = values(self.value, dtype).reshape(self.flat_shape)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            change = self.weight * (rows[start:stop] - base)
            if fresh:
                out[:] = change
            else:
                out += change

        return add

"""Differences stored whole: of weights, biases and norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, AlphaPlace, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import cast, put, times, values
from loramerge.adapter.kinds.bases.joining import Placed, filled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import ArrayTensor, RawTensor, Tensor
from loramerge.files.views import Derived, rows_of, unread_like
from loramerge.records import record, replaced

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Full", "join_differences", "sum_of_whole", "without_values"]


@final
@record(eq=False)
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

    facts: ClassVar[Facts] = Facts(whole=True)

    @classmethod
    def of(cls, value: Tensor, role: str) -> Full:
        """Make the delta of a stored difference."""
        kind = {"diff": "full", "diff_b": "bias"}.get(role, "norm")
        return cls(value, role, value.shape, kind=kind)

    def with_array(self, array: Array) -> Full:
        """Return a delta of the same kind and shape with computed values."""
        return replaced(self, value=ArrayTensor(array.reshape(self.shape)), weight=1.0)

    def content(self) -> Content:
        return Content((self.weight,))

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        return times(values(self.value, dtype), self.weight)

    def scaled(self, weight: float) -> Full:
        return replaced(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Full:
        value = rows_of(self.value, ranges)
        return replaced(self, value=value, shape=value.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {self.role: self.value}

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
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
            put(rows[start:stop], out, fresh)

        return add


def sum_of_whole(terms: Sequence[Delta], total: Array, role: str) -> Full:
    """Return a computed sum as a difference, like the first of its terms that is one.

    Args:
        total: `Σ ΔW`, flattened or not.
        role: the role to store it under where no term is a difference.
    """
    for term in terms:
        if isinstance(term, Full):
            return term.with_array(total)
    shape = max((term.shape for term in terms), key=len)  # a kernel some factors hide
    return Full.of(ArrayTensor(total.reshape(shape)), role)


def join_differences(placed: Placed, shape: tuple[int, ...], role: str) -> Full:
    """Return whole differences one above the other; rows without one are zeros."""
    values = [(start, d.value) for start, d in placed if isinstance(d, Full) and d.weight == 1.0]
    dtypes = {value.dtype for _, value in values}
    if len(values) == len(placed) and len(dtypes) == 1:
        make = filled(shape, lambda: [(start, value.numpy()) for start, value in values])
        joined = Derived(dtypes.pop(), shape, make)
    else:
        wide = filled(shape, lambda: [(start, d.dense(dtype="float64")) for start, d in placed])
        joined = Derived("F64", shape, wide)
    return Full.of(joined, role)


def without_values(delta: Delta) -> Delta:
    """Return a stand-in of the same type and shape for a difference, other deltas unchanged."""
    if not isinstance(delta, Full):
        return delta
    return replaced(delta, value=unread_like(delta.value.dtype, delta.shape))


def _make(role: str) -> Callable[[Stored], MadeDelta | None]:
    def make(stored: Stored) -> MadeDelta | None:
        tensor = stored.tensors.get(role)
        return None if tensor is None else MadeDelta(Full.of(tensor, role), (role,))

    return make


def _make_bias(role: str) -> Callable[[Stored, MadeDelta | None], MadeDelta | None]:
    return lambda stored, _: _make(role)(stored)


_PROVEN = "formula, LyCORIS"

KINDS = (
    Kind(
        "full", roles=("diff",), make=_make("diff"), always=("diff",), whole=True, compared=_PROVEN
    ),
    Kind(
        "bias",
        roles=("diff_b",),
        make_bias=_make_bias("diff_b"),
        always=("diff_b",),
        whole=True,
        compared=_PROVEN,
    ),
    Kind(
        "norm",
        roles=("w_norm", "b_norm"),
        make=_make("w_norm"),
        make_bias=_make_bias("b_norm"),
        always=("w_norm", "b_norm"),
        whole=True,
        compared=_PROVEN,
    ),
)

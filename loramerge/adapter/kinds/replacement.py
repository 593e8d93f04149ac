"""Tensors that take the place of the base's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, AlphaPlace, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import cast, put, values
from loramerge.adapter.kinds.bases.joining import Placed, filled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.full import Full
from loramerge.adapter.kinds.token_rows import TokenRows, united_rows
from loramerge.errors import AdapterError, UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.files.views import Derived, rows_of
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Replacement", "join_replacements", "same_replacement"]


# roles of PEFT's LN tuning → those of any replacement
_TUNED = {"tuned_weight": "set_weight", "tuned_bias": "set_bias"}


@final
@record(eq=False)
class Replacement(Delta):
    """`W' = W + weight · (value − W)`: a tensor that takes the place of the base's.

    PEFT's `modules_to_save` are such, and what its LN tuning changes. A weight that stands below
    factors (`base_layer.weight`) is the one that they change, so it stays as it is at any weight
    of the adapter.
    """

    value: Tensor
    role: str
    shape: tuple[int, ...]
    weight: float = 1.0

    needs_base: ClassVar[bool] = True

    @property
    def facts(self) -> Facts:
        tuned = "LN_TUNING" if self.role in _TUNED else None
        return Facts(replaces=True, peft_type=tuned)

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Replacement:
        usual = _TUNED.get(self.role, self.role)
        return self if self.role in roles else replace(self, role=usual)

    @property
    def kind(self) -> str:
        return "base" if self.role == "base_weight" else "set"

    @classmethod
    def of(cls, value: Tensor, role: str) -> Replacement:
        """Make the delta of a stored replacement."""
        return cls(value, role, value.shape)

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        if base is None:
            raise AdapterError(
                "a replacement tensor is a difference only against a base",
                hint="bake the adapter, or drop this module",
            )
        change: Array = self.weight * (values(self.value, dtype) - base.astype(dtype))
        return change

    def content(self) -> Content:
        return Content((self.weight,), (Full.of(self.value, "diff"),))

    def scaled(self, weight: float) -> Replacement:
        if self.role == "base_weight":
            return self
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Replacement:
        value = rows_of(self.value, ranges)
        return replace(self, value=value, shape=value.shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {self.role: self.value}

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
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
            put(self.weight * (rows[start:stop] - base), out, fresh)

        return add


def same_replacement(deltas: Sequence[Delta]) -> Delta:
    """Return the one replacement that all of the deltas are, or the rows of tokens of all of them.

    Raises:
        AdapterError: if they are not equal, or not all of them are replacements.
    """
    if all(isinstance(delta, TokenRows) for delta in deltas):
        return united_rows([delta for delta in deltas if isinstance(delta, TokenRows)])
    values_of = {
        (bytes(delta.value.raw()), delta.weight) if isinstance(delta, Replacement) else None
        for delta in deltas
    }
    if len(values_of) > 1 or None in values_of or next(iter(values_of))[1] != 1.0:  # type: ignore[index]
        raise AdapterError(
            "replacement tensors cannot be mixed unless they are equal",
            hint="bake the adapters one after the other, or drop this module from one of them",
        )
    return deltas[0]


def join_replacements(placed: Placed, shape: tuple[int, ...]) -> Replacement:
    """Join tensors that replace the base's; all parts must be there, and all be such."""
    tensors: list[tuple[int, Tensor]] = []
    for start, delta in placed:
        if isinstance(delta, Replacement) and delta.weight == 1.0:
            tensors.append((start, delta.value))
    dtypes = {tensor.dtype for _, tensor in tensors}
    whole = sum(tensor.shape[0] for _, tensor in tensors) == shape[0]
    if not whole or len(dtypes) > 1 or len(tensors) < len(placed):
        raise UnsupportedKind(
            "replacement tensors can be stored fused only if every part is replaced",
            hint="write a dialect that stores these modules apart",
        )
    make = filled(shape, lambda: [(start, t.numpy()) for start, t in tensors])
    return Replacement.of(Derived(dtypes.pop(), shape, make), "set_weight")


def _make(role: str) -> Callable[[Stored], MadeDelta | None]:
    def make(stored: Stored) -> MadeDelta | None:
        tensor = stored.tensors.get(role)
        return None if tensor is None else MadeDelta(Replacement.of(tensor, role), (role,))

    return make


def _make_base(stored: Stored, _: MadeDelta | None) -> MadeDelta | None:
    made = _make("base_weight")(stored)
    return None if made is None else made._replace(parameter="base")


KINDS = (
    Kind(
        "base",
        roles=("base_weight",),
        make_bias=_make_base,
        always=("base_weight",),
        whole=True,
        compared="PEFT",
    ),
    Kind(
        "set",
        roles=("set_weight", "set_bias"),
        make=_make("set_weight"),
        make_bias=lambda stored, _: _make("set_bias")(stored),
        always=("set_weight", "set_bias"),
        whole=True,
        compared="formula, PEFT",
    ),
    Kind(
        "ln-tuning",
        roles=tuple(_TUNED),
        make=_make("tuned_weight"),
        make_bias=lambda stored, _: _make("tuned_bias")(stored),
        suffixes={
            "peft": {
                "tuned_weight": (".ln_tuning_layers.weight", ".ln_tuning_layers.default.weight"),
                "tuned_bias": (".ln_tuning_layers.bias", ".ln_tuning_layers.default.bias"),
            }
        },
        always=tuple(_TUNED),
        whole=True,
        compared="formula, PEFT",
    ),
)

"""(IA)³: a weight multiplied by a vector."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from loramerge.adapter.delta import AlphaPlace, Content, Delta, Facts, ReadRows
from loramerge.adapter.floats import cast, times, values
from loramerge.adapter.kinds.bases.dependent import ChangeRows, Dependent, as_difference
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.views import rows_of, same_bytes, stacked

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["IA3", "KINDS"]

Axis = Literal["out", "in"]


@final
@dataclass(frozen=True, eq=False)
class IA3(Dependent):
    """`ΔW = weight · W ⊙ x`, x along the outputs or the inputs ((IA)³, Liu et al. 2022).

    Args:
        parts: LyCORIS: `ia3_weight`, which is x, and the flag `on_input`; PEFT: `ia3_l`, which is
            1 + x. Of n elements, in whatever axes.
        axis: `out` or `in`.
        companion: the change of the bias that the same tensor stands for; it is written with the
            weight, not for itself.
    """

    parts: Mapping[str, Tensor]
    axis: Axis
    shape: tuple[int, ...]
    weight: float = 1.0
    companion: bool = False

    kind: ClassVar[str] = "ia3"

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], axis: Axis, like: tuple[int, ...] | None = None
    ) -> IA3:
        """Make the delta of a stored vector; the size of the other axis is the family's."""
        size = next(iter(parts.values())).size
        shape = (size, 0) if axis == "out" else (0, size)
        return cls(dict(parts), axis, shape_like(shape, like))

    def of_bias(self) -> IA3:
        """Return the change of the bias by an output-wise vector of PEFT, if there is a bias."""
        return replace(self, shape=(self._value.size,), companion=True)

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(optional=self.companion, peft_type="IA3")

    @property
    def _role(self) -> str:
        return "ia3_l" if "ia3_l" in self.parts else "ia3_weight"

    @property
    def _value(self) -> Tensor:
        return self.parts[self._role]

    def content(self) -> Content:
        value = self._value if self.weight == 1.0 else ArrayTensor(self._weighed())
        return Content((float(self.axis == "in"),), (as_difference(value.reshaped((value.size,))),))

    def fits(self, shape: tuple[int, ...]) -> bool:
        axis = 0 if self.axis == "out" else 1
        return len(shape) > axis and shape[axis] == self._value.size

    def scaled(self, weight: float) -> IA3:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> IA3:
        height = sum(stop - start for start, stop in ranges)
        shape = (height, *self.shape[1:])
        if self.axis == "in":
            return replace(self, shape=shape)
        value = self._value
        axes = tuple(height if n == value.size else n for n in value.shape)
        cut = rows_of(value.reshaped((value.size,)), ranges).reshaped(axes)
        return replace(self, parts={**self.parts, self._role: cut}, shape=shape)

    def joined(
        self, deltas: Sequence[Delta], fuse: Callable[[Sequence[Delta]], Delta]
    ) -> IA3 | None:
        parts = [delta for delta in deltas if isinstance(delta, IA3)]
        first = (self.axis, self._role, self.weight, self._value.dtype)
        if len(parts) < len(deltas) or any(
            (part.axis, part._role, part.weight, part._value.dtype) != first for part in parts
        ):
            return None
        shape = (sum(part.shape[0] for part in parts), *self.shape[1:])
        if self.axis == "in":
            same = all(same_bytes(part._value, self._value) for part in parts)
            return replace(self, shape=shape) if same else None
        flat = stacked([part._value.reshaped((part._value.size,)) for part in parts])
        axes = tuple(flat.size if n == self._value.size else n for n in self._value.shape)
        return replace(self, parts={**self.parts, self._role: flat.reshaped(axes)}, shape=shape)

    def stored(self) -> Mapping[str, Tensor]:
        return {} if self.companion else self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        if self.companion:
            return {}
        value = self._value
        target = dtype or value.dtype
        if self.weight == 1.0 and target == value.dtype:
            return dict(self.parts)
        return {**self.parts, self._role: cast(self._weighed(), target, self._role)}

    def _weighed(self) -> Array:
        """Return the stored vector at weight 1."""
        one = 1.0 if self._role == "ia3_l" else 0.0
        return one + times(values(self._value, "float64") - one, self.weight)

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        x = values(self._value, "float64").reshape(-1)
        x = times(x - 1.0 if self._role == "ia3_l" else x, self.weight).astype(dtype)

        def change(start: int, stop: int, base: Any) -> Any:
            if self.axis == "out":
                return base * x[start:stop, None]
            return base * x.repeat(base.shape[1] // len(x))

        return change


def _ia3(stored: Stored) -> MadeDelta | None:
    parts = stored.only("ia3_weight", "on_input")
    if len(parts) < 2:
        return None
    if parts["on_input"].size != 1 or not parts["ia3_weight"].size:
        raise ShapeError(
            "on_input is not a flag, or the vector beside it is empty",
            module=stored.module,
            found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
        )
    axis: Axis = "in" if parts["on_input"].item() else "out"
    return MadeDelta(IA3.of(parts, axis, stored.like), tuple(parts))


def _peft_ia3(stored: Stored) -> MadeDelta | None:
    vector = stored.tensors["ia3_l"]
    axis: Axis = "in" if _named(stored.config.get("feedforward_modules"), stored.path) else "out"
    if len(vector.shape) == 2 and 1 in vector.shape and vector.size > 1:
        axis = "out" if vector.shape[1] == 1 else "in"
    elif len(vector.shape) != 4 or vector.size != vector.shape[1]:
        raise ShapeError(
            "this is not a vector of an (IA)³",
            module=stored.module,
            expected="(out, 1), (1, in), or (1, n, 1, 1)",
            found=list(vector.shape),
        )
    return MadeDelta(IA3.of({"ia3_l": vector}, axis, stored.like), ("ia3_l",))


def _named(names: Any, path: str) -> bool:
    """Return whether PEFT's list of modules, or its expression, means a module."""
    if isinstance(names, str):
        try:
            return re.fullmatch(names, path) is not None
        except re.error:
            return False
    listed = names if isinstance(names, list) else []
    return any(path == name or path.endswith(f".{name}") for name in listed)


def _peft_bias(stored: Stored, weight: MadeDelta | None) -> MadeDelta | None:
    delta = None if weight is None else weight.delta
    if isinstance(delta, IA3) and "ia3_l" in delta.parts and delta.axis == "out":
        return MadeDelta(delta.of_bias(), ())
    return None


KINDS = (
    Kind(
        "ia3",
        roles=("ia3_weight", "on_input"),
        integers=("on_input",),
        make=_ia3,
        suffixes={"lycoris": {"on_input": (".on_input",), "ia3_weight": (".weight",)}},
        always=("ia3_weight",),
        compared="formula, LyCORIS",
    ),
    Kind(
        "peft-ia3",
        roles=("ia3_l",),
        make=_peft_ia3,
        make_bias=_peft_bias,
        suffixes={"peft": {"ia3_l": (".ia3_l", ".ia3_l.default")}},
        always=("ia3_l",),
        compared="formula, PEFT",
    ),
)

"""Kinds that multiply the weight they change: (IA)³ and GLoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from loramerge.adapter.delta import Delta, ReadRows, cast, times, values
from loramerge.adapter.kinds.dense import Full
from loramerge.adapter.kinds.dependent import ChangeRows, Dependent, shape_like
from loramerge.adapter.kinds.low_rank import LowRank, Scale, Scaled, Tucker
from loramerge.errors import ShapeError
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.views import rows_of, same_bytes, stacked

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["IA3", "Axis", "GLoRA"]

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

    weighs: ClassVar[bool] = True
    kind: ClassVar[str] = "ia3"  # type: ignore[misc]
    peft_type: ClassVar[str | None] = "IA3"

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], axis: Axis, like: tuple[int, ...] | None = None
    ) -> IA3:
        """Make the delta of a stored vector; the size of the other axis is the family's."""
        size = next(iter(parts.values())).size
        shape = (size, 0) if axis == "out" else (0, size)
        return cls(dict(parts), axis, shape_like(shape, like))

    def of_bias(self) -> IA3:
        """Return what an output-wise vector of PEFT does to the bias, where there is one."""
        return replace(self, shape=(self._value.size,), companion=True)

    @property
    def optional(self) -> bool:  # type: ignore[override]
        return self.companion

    @property
    def _role(self) -> str:
        return "ia3_l" if "ia3_l" in self.parts else "ia3_weight"

    @property
    def _value(self) -> Tensor:
        return self.parts[self._role]

    @property
    def numbers(self) -> tuple[float, ...]:
        return (float(self.axis == "in"),)

    def free_parts(self) -> tuple[Delta, ...]:
        value = self._value if self.weight == 1.0 else ArrayTensor(self._weighed())
        return (Full.of(value.reshaped((value.size,)), "diff"),)

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

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        if self.companion:
            return {}
        value = self._value
        target = dtype or value.dtype
        if self.weight == 1.0 and target == value.dtype:
            return dict(self.parts)
        return {**self.parts, self._role: cast(self._weighed(), target, self._role)}

    def _weighed(self) -> Array:
        """Return the stored vector as it is at weight 1."""
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


@final
@dataclass(frozen=True, eq=False)
class GLoRA(Scaled, Dependent):
    """`ΔW = scale · (W ×ᵢₙ (a1 @ a2) + b1 @ b2)` (Chavan et al. 2023, as LyCORIS has it).

    Args:
        parts: by role: `a1 (in, r)`, `a2 (r, in)`, `b1 (out, r)`, `b2 (r, in[, kh, kw])`, and with a
            core `bm (r, r, kh, kw)` `b2 (r, in)`; each may carry 1×1 kernels.

    The first part mixes input channels at each place of the kernel.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    scale: Scale = Scale()

    weighs: ClassVar[bool] = True
    kind: ClassVar[str] = "glora"  # type: ignore[misc]

    @classmethod
    def of(cls, parts: Mapping[str, Tensor], scale: Scale = Scale(), what: str = "") -> GLoRA:
        """Make the delta of stored factors, checking that they fit.

        Raises:
            ShapeError: if they do not.
        """
        a1, a2, b1, b2 = (parts[role].shape for role in ("a1", "a2", "b1", "b2"))
        kernel = parts["bm"].shape[2:] if "bm" in parts else b2[2:]
        fits = (
            min(len(a1), len(a2), len(b1), len(b2)) >= 2
            and all(tensor.size for tensor in parts.values())
            and a1[1:2] == a2[:1]
            and a1[:1] == a2[1:2] == b2[1:2]
            and b1[1:2] == (parts["bm"].shape[:1] if "bm" in parts else b2[:1])
            and ("bm" not in parts or parts["bm"].shape[1:2] == b2[:1])
            and math.prod(a1[2:]) == math.prod(a2[2:]) == math.prod(b1[2:]) == 1
        )
        if not fits:
            raise ShapeError(
                "the factors of a GLoRA do not fit together",
                module=what,
                expected="a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in[, kh, kw])",
                found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
            )
        return cls(dict(parts), (b1[0], b2[1], *kernel), scale)

    @property
    def weight(self) -> float:  # type: ignore[override]
        return self.scale.weight

    @property
    def dim(self) -> int:
        return self.parts["a2"].shape[0]

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("a1", "b1")

    @property
    def numbers(self) -> tuple[float, ...]:
        return ()

    def free_parts(self) -> tuple[Delta, ...]:
        scale = Scale(ratio=self.factor)
        a1, a2, b1, b2 = (self.parts[role] for role in ("a1", "a2", "b1", "b2"))
        core = self.parts.get("bm")
        first = LowRank.of(a1, a2, scale)
        return (
            first,
            LowRank.of(b1, b2, scale) if core is None else Tucker.of(b1, b2, core, scale),
        )

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def rows(self, ranges: Sequence[tuple[int, int]]) -> GLoRA:
        b1 = rows_of(self.parts["b1"], ranges)
        return replace(self, parts={**self.parts, "b1": b1}, shape=(b1.shape[0], *self.shape[1:]))

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        def matrix(role: str) -> Array:
            tensor = self.parts[role]
            return values(tensor, dtype, (tensor.shape[0], math.prod(tensor.shape[1:])))

        a1, a2 = times(matrix("a1"), self.factor), matrix("a2")
        b1, b2 = times(matrix("b1"), self.factor), matrix("b2")
        if "bm" in self.parts:
            core = values(self.parts["bm"], dtype)
            b2 = np.einsum("pq...,qi->pi...", core, b2, optimize=True).reshape(len(core), -1)
        inputs = len(a1)

        def change(start: int, stop: int, base: Any) -> Any:
            at_places = base.reshape(len(base), inputs, -1).swapaxes(1, 2)  # (rows, places, in)
            mixed = ((at_places @ a1) @ a2).swapaxes(1, 2).reshape(base.shape)
            return mixed + b1[start:stop] @ b2

        return change

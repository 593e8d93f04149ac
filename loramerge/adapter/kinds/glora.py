"""GLoRA: a weight whose inputs are mixed by low-rank factors, and others added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Content, Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.dependent import ChangeRows, Dependent
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.lora import LowRank
from loramerge.adapter.kinds.tucker import Tucker
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "GLoRA"]


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

    facts: ClassVar[Facts] = Facts()
    kind: ClassVar[str] = "glora"

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

    def content(self) -> Content:
        scale = Scale(ratio=self.factor)
        a1, a2, b1, b2 = (self.parts[role] for role in ("a1", "a2", "b1", "b2"))
        core = self.parts.get("bm")
        second = LowRank.of(b1, b2, scale) if core is None else Tucker.of(b1, b2, core, scale)
        return Content(free=(LowRank.of(a1, a2, scale), second))

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


_ROLES = ("a1", "a2", "b1", "b2", "bm")


def _make(stored: Stored) -> MadeDelta | None:
    tensors = stored.only(*_ROLES)
    if not {"a1", "a2", "b1", "b2"} <= tensors.keys():
        return None
    delta = GLoRA.of(tensors, stored.scale(), stored.module)
    return MadeDelta(delta, (*tensors, "alpha", "scale"))


KINDS = (
    Kind(
        "glora",
        roles=_ROLES,
        make=_make,
        suffixes={"lycoris": {role: (f".{role}.weight",) for role in _ROLES}},
        always=("a1",),
        compared="formula, LyCORIS",
    ),
)

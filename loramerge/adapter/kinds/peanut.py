"""PEANuT: a small network of the weight itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, number, require
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "PEANuT"]

_ROLES = ("peanut_A", "peanut_B")
_BENDS = ("relu", "tanh", "sigmoid", "silu", "linear")


@final
@record(eq=False)
class PEANuT(OfBase):
    """`ΔW = scale · B f(A W)` (Zhong et al. 2024; PEFT, of depth 0).

    Args:
        parts: `A (r, out)` and `B (out, r)`.
        bend: f, by its name.

    The whole weight is read for A W, of which the r rows are held.
    """

    parts: Mapping[str, Tensor]
    scale: float
    bend: str
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "peanut"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="PEANUT")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale, float(_BENDS.index(self.bend)))

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[0] == self.parts["peanut_B"].shape[0]

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        down, up = (values(self.parts[role], dtype) for role in _ROLES)
        inner: list[Any] = []

        def change(start: int, stop: int, base: Any) -> Any:
            if not inner:
                inner.append(_bent(down @ read(0, len(up)), self.bend))
            return times(up[start:stop], self.scale * self.weight) @ inner[0]

        return change


def _bent(x: Array, bend: str) -> Array:
    """Return f of every element."""
    import numpy as np

    if bend == "relu":
        return np.maximum(x, 0)
    if bend == "tanh":
        return np.tanh(x)
    if bend == "linear":
        return x
    sigmoid: Array = 0.5 * (1.0 + np.tanh(0.5 * x))
    return sigmoid if bend == "sigmoid" else x * sigmoid


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if len(parts) < 2:
        return None
    a, b = (parts[role].shape for role in _ROLES)
    require(
        stored, len(a) == 2 and b == a[::-1] and min(a) > 0, "PEANuT", "A (r, out) and B (out, r)"
    )
    bend = str(stored.config.get("act_fn", "relu"))
    bend = {"swish": "silu"}.get(bend, bend)
    if bend not in _BENDS:
        raise UnsupportedKind(
            f"PEANuT with the activation {bend[:20]!r} is not computed",
            module=stored.module,
            expected=f"act_fn {', '.join(_BENDS)}",
            hint="merge it in PEFT with merge_and_unload()",
        )
    shape = shape_like((b[0], 0), stored.like)
    return MadeDelta(PEANuT(parts, number(stored, "scaling", 1.0), bend, shape), tuple(parts))


KINDS = (
    Kind(
        "peanut",
        roles=_ROLES,
        make=_make,
        suffixes={
            "peft": {role: (f".{role}.weight", f".{role}.default.weight") for role in _ROLES}
        },
        always=(_ROLES[0],),
        compared="formula, PEFT",
    ),
)

"""DEFT: a part of the weight taken away, and another put in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, number, require, suffixes
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["DEFT", "KINDS"]

_ROLES = ("deft_P", "deft_R")


@final
@record(eq=False)
class DEFT(OfBase):
    """`ΔW = Q (scale · R − Vᵀ W)`, Q = P and V = max(P, 0), or both the Q of P's QR decomposition
    (PEFT).

    Args:
        parts: `P (out, r)`, and `R (r, in)`, which may be missing (`para`) and is zero then.
        scale: alpha / r, or 1.
        qr: which of the two.

    Every row needs all of W, of which a block of rows is held at a time, and the r rows of Vᵀ W.
    """

    parts: Mapping[str, Tensor]
    scale: float
    qr: bool
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "deft"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="DEFT")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale, float(self.qr))

    def fits(self, shape: tuple[int, ...]) -> bool:
        columns = self.parts["deft_R"].shape[1] if "deft_R" in self.parts else shape[1]
        return len(shape) == 2 and shape == (self.parts["deft_P"].shape[0], columns)

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        left = values(self.parts["deft_P"], dtype)
        right = np.maximum(left, 0)
        if self.qr:
            left = right = np.linalg.qr(left)[0]
        inner: list[Any] = []

        def change(start: int, stop: int, base: Any) -> Any:
            if not inner:
                inner.append(-(right.T @ read(0, len(left))))
                if "deft_R" in self.parts:
                    inner[0] += times(values(self.parts["deft_R"], dtype), self.scale)
            return times(left[start:stop], self.weight) @ inner[0]

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if "deft_P" not in parts:
        return None
    p, r = parts["deft_P"].shape, parts["deft_R"].shape if "deft_R" in parts else None
    method = stored.config.get("decomposition_method", "relu")
    fits = len(p) == 2 and min(p) > 0 and (r is None or (len(r) == 2 and r[0] == p[1]))
    require(
        stored, fits and method in ("relu", "qr"), "DEFT", "P (out, r), R (r, in), by relu or qr"
    )
    number(stored, "r", p[1])  # without a configuration it is not known which
    scale = number(stored, "alpha", 0.0) / p[1] if stored.config.get("alpha") else 1.0
    shape = (p[0], r[1]) if r is not None else shape_like((p[0], 0), stored.like)
    return MadeDelta(DEFT(parts, scale, method == "qr", shape), tuple(parts))


KINDS = (
    Kind(
        "deft",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_ROLES[0],),
        compared="formula, PEFT",
    ),
)

"""HiRA: the weight times a low-rank matrix, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, require, suffixes
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "HiRA"]

_LAYER = ("hira_A", "hira_B")
_TABLE = ("hira_embedding_A", "hira_embedding_B")


@final
@record(eq=False)
class HiRA(OfBase):
    """`ΔW = W ⊙ (B A)` (Huang et al. 2025; PEFT).

    Args:
        parts: `A (r, in[, kh, kw])` and `B (out, r[, 1, 1])`; of an embedding `embedding_A (r,
            rows)` and `embedding_B (columns, r)`, whose product is transposed.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "hira"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="HIRA")

    @property
    def form(self) -> str:
        return f"{self.kind} of an embedding" if _TABLE[0] in self.parts else self.kind

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        table = _TABLE[0] in self.parts
        a, b = (values(self.parts[role], dtype) for role in (_TABLE if table else _LAYER))
        up, down = (a.T, b.T) if table else (b.reshape(len(b), -1), a.reshape(len(a), -1))
        up = times(up, self.weight)

        def change(start: int, stop: int, base: Any) -> Any:
            return base * (up[start:stop] @ down)

        return change


def _make(stored: Stored) -> MadeDelta | None:
    table = _TABLE[0] in stored.tensors
    parts = stored.only(*(_TABLE if table else _LAYER))
    if len(parts) < 2:
        return None
    a, b = (tensor.shape for tensor in parts.values())
    fits = len(a) >= 2 and len(b) >= 2 and a[0] == b[1] > 0 and all(n == 1 for n in b[2:])
    require(stored, fits, "HiRA", "A (r, in) or (r, in, kh, kw), and B (out, r)")
    shape = (a[1], b[0]) if table else (b[0], *a[1:])
    return MadeDelta(HiRA(parts, shape), tuple(parts))


KINDS = (
    Kind(
        "hira",
        roles=(*_LAYER, *_TABLE),
        make=_make,
        suffixes={"peft": suffixes(*_LAYER, *_TABLE)},
        always=(_LAYER[0], _TABLE[0]),
        compared="formula, PEFT",
    ),
)

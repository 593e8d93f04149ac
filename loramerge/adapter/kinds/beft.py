"""BEFT: a difference of the bias, as a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.computed import ComputedWhole, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["BEFT", "KINDS"]

_ROLE = "beft_bias"


@final
@record(eq=False)
class BEFT(ComputedWhole):
    """`Δb = value` (PEFT).

    Args:
        parts: `bias (1, out)`.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "beft"
    facts: ClassVar[Facts] = Facts(peft_type="BEFT")

    def whole(self, dtype: str) -> Array:
        return values(self.parts[_ROLE], dtype).reshape(-1, 1)


def _make_bias(stored: Stored, _: MadeDelta | None) -> MadeDelta | None:
    parts = stored.only(_ROLE)
    if not parts:
        return None
    shape = parts[_ROLE].shape
    require(stored, len(shape) == 2 and shape[0] == 1 and shape[1] > 0, "BEFT", "bias (1, out)")
    return MadeDelta(BEFT(parts, shape[1:]), (_ROLE,))


KINDS = (
    Kind(
        "beft",
        roles=(_ROLE,),
        make_bias=_make_bias,
        suffixes={"peft": suffixes(_ROLE)},
        always=(_ROLE,),
        compared="formula, PEFT",
    ),
)

"""C³A: blocks that are circulant matrices."""

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

__all__ = ["C3A", "KINDS"]

_ROLE = "c3a_kernel"


@final
@record(eq=False)
class C3A(ComputedWhole):
    """`ΔW[m·b + q, n·b + p] = k[m, n, (p − q) mod b] / in` (Chen et al. 2024; PEFT).

    Args:
        parts: `kernel (out/b, in/b, b)`.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "c3a"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="C3A")

    def whole(self, dtype: str) -> Array:
        import numpy as np

        kernel = values(self.parts[_ROLE], dtype)
        place = np.arange(kernel.shape[2])
        blocks = kernel[:, :, (place - place[:, None]) % len(place)]  # (m, n, q, p)
        return blocks.swapaxes(1, 2).reshape(self.shape) / self.shape[1]


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(_ROLE)
    shape = parts[_ROLE].shape
    require(stored, len(shape) == 3 and min(shape) > 0, "C³A", "kernel (out/b, in/b, b)")
    rows, columns, size = shape
    return MadeDelta(C3A(parts, (rows * size, columns * size)), (_ROLE,))


KINDS = (
    Kind(
        "c3a",
        roles=(_ROLE,),
        make=_make,
        suffixes={"peft": suffixes(_ROLE)},
        always=(_ROLE,),
        compared="formula, PEFT",
    ),
)

"""LoCon with a Tucker core."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.factored import Factored
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Tucker"]


@final
@dataclass(frozen=True, eq=False)
class Tucker(Factored):
    """`ΔW[o,i,h,w] = scale · Σ_pq up[o,p] mid[p,q,h,w] down[q,i]`: a convolution with a small core.

    Args:
        up: `(out, r, 1, 1)`; mid: `(r, r, kh, kw)`; down: `(r, in, 1, 1)`.

    Its exact low-rank form contracts mid with down and keeps the rank.
    """

    up: Tensor
    down: Tensor
    mid: Tensor
    shape: tuple[int, ...]
    scale: Scale = Scale()

    facts: ClassVar[Facts] = Facts(magnitudes=True)
    kind: ClassVar[str] = "tucker"

    @classmethod
    def of(
        cls, up: Tensor, down: Tensor, mid: Tensor, scale: Scale = Scale(), what: str = ""
    ) -> Tucker:
        """Make the delta of three stored factors, checking that they fit.

        Raises:
            ShapeError: if the ranks differ.
        """
        fits = (
            len(mid.shape) == 4
            and up.shape[1:2] == mid.shape[:1]
            and down.shape[:1] == mid.shape[1:2]
            and math.prod(up.shape[2:]) == math.prod(down.shape[2:]) == 1
        )
        if not fits:
            raise ShapeError(
                "up, mid and down do not fit together",
                module=what,
                expected="up (out, r, 1, 1), mid (r, r, kh, kw), down (r, in, 1, 1)",
                found=f"up {list(up.shape)}, mid {list(mid.shape)}, down {list(down.shape)}",
            )
        return cls(up, down, mid, (up.shape[0], down.shape[1], *mid.shape[2:]), scale)

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        import numpy as np

        rank, inner = self.mid.shape[:2]
        up = times(values(self.up, dtype, (self.shape[0], rank)), self.scale.value(rank))
        mid = values(self.mid, dtype)
        down = values(self.down, dtype, (inner, self.shape[1]))
        joined = np.einsum("pqhw,qi->pihw", mid, down, optimize=True)
        return up, joined.reshape(rank, -1)

    def stored(self) -> Mapping[str, Tensor]:
        return {"up": self.up, "down": self.down, "mid": self.mid}


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only("up", "down", "mid")
    if len(parts) < 3:
        return None
    delta = Tucker.of(parts["up"], parts["down"], parts["mid"], stored.scale(), stored.module)
    return MadeDelta(delta, (*parts, "alpha", "scale"))


KINDS = (
    Kind(
        "tucker",
        roles=("mid",),
        make=_make,
        suffixes={"lycoris": {"mid": (".lora_mid.weight",)}},
        wraps=True,
        compared="formula, LyCORIS",
    ),
)

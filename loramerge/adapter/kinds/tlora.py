"""T-LoRA: other values for the largest directions of the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import OfBase, require
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "TLoRA"]

_ROLES = {
    "tlora_q": ".q_layer.weight",
    "tlora_p": ".p_layer.weight",
    "tlora_lambda": ".lambda_layer",
}


@final
@record(eq=False)
class TLoRA(OfBase):
    """`ΔW = scale · (P diag(λ) Q − W_r)`, W_r the best approximation of rank r (LyCORIS).

    Training begins with P, λ and Q of W_r, which files do not hold; LyCORIS computes them again, and
    always from the largest singular values. While it denoises LyCORIS leaves directions out step by
    step; this is the change with all of them, as it merges it.

    Args:
        parts: `q (r, in)`, `p (out, r)`, each with 1×1 kernels or without, `lambda (1, r)`, and `alpha`.
        scale: alpha / r.

    The whole weight is held and decomposed.
    """

    parts: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "tlora"
    facts: ClassVar[Facts] = Facts(weighs=False)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale,)

    def stored(self) -> Mapping[str, Tensor]:
        return {role: tensor for role, tensor in self.parts.items() if role != "alpha"}

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        whole: list[Any] = []

        def change(start: int, stop: int, base: Any) -> Any:
            if not whole:
                found = self._changed(read(0, self.shape[0]), dtype)
                whole.append(times(found, self.scale * self.weight))
            return whole[0][start:stop]

        return change

    def _changed(self, base: Any, dtype: str) -> Any:
        import numpy as np

        q, p, strengths = (values(self.parts[role], dtype) for role in _ROLES)
        r = strengths.size
        left, sizes, right = np.linalg.svd(base.astype("float64"), full_matrices=False)
        before = (left[:, :r] * sizes[:r]) @ right[:r]
        after = (p.reshape(-1, r) * strengths.reshape(-1)) @ q.reshape(r, -1)
        return after - before.astype(dtype)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES, "alpha")
    if not parts.keys() >= _ROLES.keys():
        return None
    q, p = parts["tlora_q"].shape, parts["tlora_p"].shape
    fits = len(q) == len(p) >= 2 and q[0] == p[1] == parts["tlora_lambda"].size > 0
    require(
        stored,
        fits and math.prod((*q[2:], *p[2:])) == 1,
        "T-LoRA",
        "q_layer (r, in), p_layer (out, r), lambda_layer (1, r)",
    )
    if stored.like is not None and math.prod(stored.like[2:]) > 1:
        raise UnsupportedKind(
            "T-LoRA of a kernel larger than 1×1 changes one of its places only, and differently from "
            "how it was trained",
            module=stored.module,
            hint="leave this module out",
        )
    scale = stored.scale().value(q[0]) or 1.0  # LyCORIS takes the rank for an alpha of 0
    return MadeDelta(TLoRA(parts, scale, (p[0], q[1], *q[2:])), tuple(parts))


KINDS = (
    Kind(
        "tlora",
        roles=tuple(_ROLES),
        make=_make,
        suffixes={"lycoris": {role: (end,) for role, end in _ROLES.items()}},
        always=("tlora_q",),
        example={"tlora_q": (2, 16), "tlora_p": (16, 2), "tlora_lambda": (1, 2)},
        compared="formula, LyCORIS",
    ),
)

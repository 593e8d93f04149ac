"""UniLoRA: factors whose entries are those of one short vector, by saved places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.computed import ComputedPair, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "UniLoRA"]

_VECTOR = "unilora_theta_d"
_PLACES = ("unilora_indices_A", "unilora_indices_B")
_SCALES = ("unilora_scales_A", "unilora_scales_B")
_ROLES = (*_PLACES, *_SCALES, _VECTOR)


@final
@record(eq=False)
class UniLoRA(ComputedPair):
    """`ΔW = B A`, `A = θ[i_A] ⊙ s_A` and `B = θ[i_B] ⊙ s_B` (PEFT).

    Args:
        parts: `theta_d (n,)`, shared by all modules; `indices_A` and `scales_A (r, in)`, `indices_B` and
            `scales_B (out, r)`.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "unilora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="UNILORA")

    @property
    def dim(self) -> int:
        return self.parts[_PLACES[0]].shape[0]

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        vector = values(self.parts[_VECTOR], dtype)
        down, up = (
            vector[self.parts[places].numpy()] * values(self.parts[scales], dtype)
            for places, scales in zip(_PLACES, _SCALES, strict=True)
        )
        return up, down


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if not parts.keys() >= {*_PLACES, *_SCALES}:
        return None
    if _VECTOR not in parts:
        raise UnsupportedKind(
            f"the file lacks {_VECTOR}", module=stored.module, hint="save the adapter again in PEFT"
        )
    a, b = (parts[role].shape for role in _PLACES)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and min(*a, *b) > 0
    fits = (
        fits
        and [parts[role].shape for role in _SCALES] == [a, b]
        and len(parts[_VECTOR].shape) == 1
    )
    require(
        stored, fits, "UniLoRA", "indices_A and scales_A (r, in), indices_B and scales_B (out, r)"
    )
    return MadeDelta(UniLoRA(parts, (b[0], a[1])), tuple(parts))


KINDS = (
    Kind(
        "unilora",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_PLACES[0],),
        integers=_PLACES,
        compared="formula, PEFT",
    ),
)

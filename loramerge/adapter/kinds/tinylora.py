"""TinyLoRA: factors from the base, and a small matrix between them from one short vector."""

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

__all__ = ["KINDS", "TinyLoRA"]

_OWN = ("tinylora_A", "tinylora_B")
_PROJECTION, _VECTOR, _PLACE = "tinylora_P", "tinylora_v", "tinylora_place"
_ROLES = (*_OWN, _PROJECTION, _VECTOR)


@final
@record(eq=False)
class TinyLoRA(ComputedPair):
    """`ΔW = B (Σ_k v_k P_k) A` (PEFT).

    Args:
        parts: `A (r, in)` and `B (out, r)`, the largest directions of the base, which PEFT saves;
            `P (u, r, r)`; and `v (u,)`, which may be shared by modules. `place` says which vector it is.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "tinylora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="TINYLORA")

    @property
    def dim(self) -> int:
        return self.parts["tinylora_A"].shape[0]

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        import numpy as np

        down, up, projection, vector = (values(self.parts[role], dtype) for role in _ROLES)
        return up @ np.einsum("k,kij->ij", vector, projection), down


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES, _PLACE)
    if not parts.keys() >= set(_OWN):
        return None
    if _PROJECTION not in parts:
        raise UnsupportedKind(
            "the file lacks the projections tinylora_P, which PEFT draws again with torch",
            module=stored.module,
            hint="save it in PEFT with save_projection=True",
        )
    if _VECTOR not in parts:
        raise UnsupportedKind(
            "which of the adapter's vectors tinylora_v belongs to which module is not in its files: "
            "PEFT "
            "counts the layers of the model",
            module=stored.module,
            hint="merge it in PEFT with merge_and_unload()",
        )
    a, b, p, v = (parts[role].shape for role in _ROLES)
    fits = (len(a), len(b), len(p), len(v)) == (2, 2, 3, 1) and a[0] == b[1] == p[1] == p[2] > 0
    require(stored, fits and v == p[:1], "TinyLoRA", "A (r, in), B (out, r), P (u, r, r), v (u)")
    return MadeDelta(TinyLoRA(parts, (b[0], a[1])), tuple(parts))


KINDS = (
    Kind(
        "tinylora",
        roles=(*_ROLES, _PLACE),
        make=_make,
        suffixes={"peft": suffixes(*_ROLES, _PLACE)},
        always=(_OWN[0],),
        integers=(_PLACE,),
        compared="formula, PEFT",
    ),
)

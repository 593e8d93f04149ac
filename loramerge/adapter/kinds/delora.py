"""DeLoRA: low-rank factors of normed directions, with one strength."""

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

__all__ = ["KINDS", "DeLoRA"]

_ROLES = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
_LEAST = 1e-4  # PEFT's, for norms of directions


@final
@record(eq=False)
class DeLoRA(ComputedPair):
    """`ΔW = λ/r · B̂ Â diag(n)`, columns of B and rows of A of norm 1 (Bini et al. 2025; PEFT).

    Args:
        parts: `A (r, in)`, `B (out, r)`, `lambda (1,)`, and `w_norm (in,)`, the norms of the
            columns of the base, which PEFT saves.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "delora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="DELORA")

    @property
    def dim(self) -> int:
        return self.parts["delora_A"].shape[0]

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        import numpy as np

        a, b, strength, norms = (values(self.parts[role], dtype) for role in _ROLES)
        lengths = np.maximum(np.linalg.norm(a, axis=1), _LEAST)
        lengths = lengths * np.maximum(np.linalg.norm(b, axis=0), _LEAST)
        return b * (strength / self.dim / lengths), a * norms


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if not parts.keys() >= set(_ROLES[:3]):
        return None
    if len(parts) < 4:
        raise UnsupportedKind(
            "the file lacks delora_w_norm, the norms of the base's columns",
            module=stored.module,
            hint="load it in PEFT with its base and save it again",
        )
    a, b, _, norms = (parts[role].shape for role in _ROLES)
    fits = len(a) == len(b) == 2 and a[0] == b[1] > 0 and parts["delora_lambda"].size == 1
    require(
        stored, fits and norms == a[1:], "DeLoRA", "A (r, in), B (out, r), lambda (1), w_norm (in)"
    )
    return MadeDelta(DeLoRA(parts, (b[0], a[1])), tuple(parts))


KINDS = (
    Kind(
        "delora",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_ROLES[0],),
        compared="formula, PEFT",
    ),
)

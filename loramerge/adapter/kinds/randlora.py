"""RandLoRA: a sum of scaled random matrices of low rank that all modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedPair, flat, number, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "RandLoRA"]

_OWN = ("randlora_lambda", "randlora_gamma")
_SHARED = ("randlora_A", "randlora_B")
_ROLES = (*_OWN, *_SHARED)


@final
@record(eq=False)
class RandLoRA(ComputedPair):
    """`ΔW = alpha/r · B A` or its transpose, A scaled by λ and γ (Albert et al. 2025; PEFT).

    Args:
        parts: `lambda (r, n)`, `gamma (n, m)`, m the smaller side of the weight; shared by all modules,
            `A (r, 1, ≥ m)` and `B (≥ the larger side, ≥ n, r)`, of which a module takes the first
            places.
        scale: alpha / r.

    The two factors number their `n·r` directions differently, (r, n) and (n, r), as PEFT has it.
    """

    parts: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "randlora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="RANDLORA")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale,)

    @property
    def dim(self) -> int:
        return self.parts["randlora_lambda"].size

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        smaller, largest = self.parts["randlora_gamma"].shape[1], self.parts["randlora_B"].shape[0]
        return min(flat(shape)) == smaller and max(flat(shape)) <= largest

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        rows, columns = self.flat_shape
        strengths, places = (values(self.parts[role], dtype) for role in _OWN)
        a, b = (values(self.parts[role], dtype) for role in _SHARED)
        count, smaller = places.shape
        a = strengths[:, :, None] * a[:, :count, :smaller] * places
        a = a.reshape(-1, smaller)
        b = b[: max(rows, columns), :count].reshape(max(rows, columns), -1)
        if smaller == columns:
            return times(b, self.scale), a
        return times(a.T, self.scale), b.T


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if not parts.keys() >= set(_OWN):
        return None
    if len(parts) < len(_ROLES):
        raise UnsupportedKind(
            "the file lacks randlora_A and randlora_B, which PEFT draws again for the largest of "
            "all layers",
            module=stored.module,
            hint="save it in PEFT with save_projection=True",
        )
    strengths, places, a, b = (parts[role].shape for role in _ROLES)
    fits = (len(strengths), len(places), len(a), len(b)) == (2, 2, 3, 3)
    fits = (
        fits and min(*strengths, *places, *a, *b) > 0 and a[1] == 1 and a[0] == b[2] == strengths[0]
    )
    fits = fits and strengths[1] == places[0] <= b[1] and places[1] <= a[2]
    require(stored, fits, "RandLoRA", "lambda (r, n), gamma (n, m), A (r, 1, ≥ m), B (≥ m, ≥ n, r)")
    delta = RandLoRA(parts, number(stored, "randlora_alpha", 640) / a[0], (0, 0))
    return MadeDelta(delta.of_module(stored.like), tuple(parts))


KINDS = (
    Kind(
        "randlora",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_OWN[0],),
        compared="formula, PEFT",
    ),
)

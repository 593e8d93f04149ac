"""AdaLoRA: LoRA with a strength of each direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedPair, number, require, suffixes
from loramerge.adapter.kinds.bases.shapes import kernel_of
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "AdaLoRA"]

_ROLES = ("down", "up", "lora_E")
_ABOVE_ZERO = 1e-5  # PEFT adds it to the rank it divides by


@final
@record(eq=False)
class AdaLoRA(ComputedPair):
    """`ΔW = scale · B diag(E) A` (Zhang et al. 2023; PEFT).

    Args:
        parts: `lora_A (r, in·kh·kw)`, `lora_B (out, r)`, `lora_E (r, 1)`.
        scale: alpha / the rank that training began with.
    """

    parts: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "adalora"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="ADALORA")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale,)

    @property
    def dim(self) -> int:
        return self.parts["lora_E"].size

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        down, up, strengths = (values(self.parts[role], dtype) for role in _ROLES)
        return times(up, self.scale), down * strengths.reshape(-1, 1)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    if len(parts) < 3:
        return None
    down, up = parts["down"].shape, parts["up"].shape
    fits = len(down) == len(up) == 2 and down[0] == up[1] == parts["lora_E"].size > 0
    require(stored, fits, "AdaLoRA", "lora_A (r, in), lora_B (out, r), lora_E (r, 1)")
    first, alpha = number(stored, "init_r", 12), number(stored, "lora_alpha", 8)
    scale = (alpha if alpha > 0 else first) / (first + _ABOVE_ZERO)
    shape = kernel_of((up[0], down[1]), stored.like)
    return MadeDelta(AdaLoRA(parts, scale, shape), _ROLES, hides_kernel=True)


KINDS = (
    Kind(
        "adalora",
        roles=("lora_E",),
        make=_make,
        suffixes={"peft": suffixes("lora_E")},
        always=("lora_E",),
        wraps=True,
        compared="formula, PEFT",
    ),
)

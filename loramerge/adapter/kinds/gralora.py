"""GraLoRA: blocks of the weight with low-rank factors of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import ComputedPair, number, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "GraLoRA"]

_BLOCKS = ("gralora_A", "gralora_B")
_GENERAL = ("gralora_A_general", "gralora_B_general")


@final
@record(eq=False)
class GraLoRA(ComputedPair):
    """`ΔW = scale · (blocks + B_g A_g)`; the block of outputs s and inputs n is `Σ_t B[s, n·q+t]
    A[n, s·q+t]` with q = r/k (Jung et al. 2025; PEFT).

    Args:
        parts: `A (k, in/k, r)`, `B (k, r, out/k)`, and, of the hybrid form, `A_general (h, in)` and
            `B_general (out, h)`.
        scale: alpha / (r + h).
    """

    parts: Mapping[str, Tensor]
    scale: float
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "gralora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="GRALORA")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.scale,)

    @property
    def dim(self) -> int:
        blocks, _, rank = self.parts["gralora_A"].shape
        general = self.parts.get("gralora_A_general")
        return blocks * rank + (0 if general is None else general.shape[0])

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        import numpy as np

        a, b = (values(self.parts[role], dtype) for role in _BLOCKS)
        k, width, rank = a.shape
        rows, columns = self.flat_shape
        # directions are numbered by block of inputs n, of outputs s, and t
        share = rank // k
        down = np.zeros((k, rank, k, width), dtype)
        up = np.zeros((k, rows // k, k, k, share), dtype)
        for n in range(k):
            down[n, :, n] = a[n].T
        outputs = b.reshape(k, k, share, rows // k)  # (s, n, t, o)
        for s in range(k):
            up[s, :, :, s] = outputs[s].transpose(2, 0, 1)
        left, right = up.reshape(rows, -1), down.reshape(-1, columns)
        if _GENERAL[0] in self.parts:
            left = np.concatenate([left, values(self.parts[_GENERAL[1]], dtype)], axis=1)
            right = np.concatenate([right, values(self.parts[_GENERAL[0]], dtype)])
        return times(left, self.scale), right


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_BLOCKS, *_GENERAL)
    if not parts.keys() >= set(_BLOCKS):
        return None
    a, b = (parts[role].shape for role in _BLOCKS)
    fits = len(a) == len(b) == 3 and a[0] == b[0] > 0 and a[2] == b[1] and a[2] % a[0] == 0
    general = [parts[role].shape for role in _GENERAL if role in parts]
    rows, columns = (b[0] * b[2], a[0] * a[1]) if fits else (0, 0)
    if general and fits:
        fits = (
            len(general) == 2
            and general[0][1:] == (columns,)
            and general[1] == (rows, general[0][0])
        )
    require(
        stored,
        fits and rows * columns > 0,
        "GraLoRA",
        "A (k, in/k, r), B (k, r, out/k), k divides r",
    )
    hybrid = general[0][0] if general else 0
    scale = number(stored, "alpha", 64) / (a[2] + hybrid)
    return MadeDelta(GraLoRA(parts, scale, (rows, columns)), tuple(parts))


KINDS = (
    Kind(
        "gralora",
        roles=(*_BLOCKS, *_GENERAL),
        make=_make,
        suffixes={
            "peft": {
                **suffixes(*_BLOCKS),
                **{role: (f".{role}.weight", f".{role}.default.weight") for role in _GENERAL},
            }
        },
        always=(_BLOCKS[0],),
        compared="formula, PEFT",
    ),
)

"""VB-LoRA: factors put together from a bank of vectors that all modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.computed import ComputedPair, number, require, suffixes
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "VBLoRA"]

_BANK = "vblora_vector_bank"
_LOGITS = ("vblora_logits_A", "vblora_logits_B")
_INDICES = tuple(f"{role}_topk_indices" for role in _LOGITS)
_WEIGHTS = tuple(f"{role}_topk_weights" for role in _LOGITS)
_ROLES = (*_LOGITS, *_INDICES, *_WEIGHTS, _BANK)


@final
@record(eq=False)
class VBLoRA(ComputedPair):
    """`ΔW = B A`, each piece of a row of A and of a column of B a mean of `topk` vectors of a
    bank, weighted by the softmax of their logits (Li et al. 2024; PEFT).

    Args:
        parts: `vector_bank (n, v)`, and `logits_A (r, in/v, n)` and `logits_B (out/v, r, n)`; or, as
            `save_only_topk_weights` has it, the places `topk_indices` of the largest of them and their
            weights `topk_weights`, without the last, which adds up to 1.
        topk: how many vectors count.
    """

    parts: Mapping[str, Tensor]
    topk: int
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "vblora"
    facts: ClassVar[Facts] = Facts(compact=True, weighs=False, peft_type="VBLORA")

    @property
    def numbers(self) -> tuple[float, ...]:
        return (float(self.topk),)

    @property
    def dim(self) -> int:
        return next(self.parts[r].shape[0] for r in (_LOGITS[0], _INDICES[0]) if r in self.parts)

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        down, up = (self._put_together(side, dtype) for side in (0, 1))
        rows, columns = self.flat_shape
        return up.swapaxes(1, 2).reshape(rows, -1), down.reshape(-1, columns)

    def _put_together(self, side: int, dtype: str) -> Array:
        """Return the vectors of one factor, along a last axis."""
        import numpy as np

        bank = values(self.parts[_BANK], dtype)
        if _LOGITS[side] in self.parts:
            logits = values(self.parts[_LOGITS[side]], dtype)
            places = np.argsort(-logits, axis=-1, kind="stable")[..., : self.topk]
            largest = np.take_along_axis(logits, places, -1)
            shares = np.exp(largest - largest[..., :1])
            shares = shares / shares.sum(-1, keepdims=True)
        else:
            places = self.parts[_INDICES[side]].numpy().astype(np.int64)
            most = values(self.parts[_WEIGHTS[side]], dtype)
            shares = np.concatenate([most, 1.0 - most.sum(-1, keepdims=True)], axis=-1)
        together: Array = np.einsum("...k,...kv->...v", shares, bank[places])
        return together


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    whole = parts.keys() >= set(_LOGITS)
    if not whole and not parts.keys() >= {*_INDICES, *_WEIGHTS}:
        return None
    if _BANK not in parts:
        raise UnsupportedKind(
            "the file lacks the bank of vectors",
            module=stored.module,
            hint="save the adapter again in PEFT",
        )
    topk = int(number(stored, "topk", 2))
    a, b = (parts[r].shape for r in (_LOGITS if whole else _INDICES))
    bank = parts[_BANK].shape
    fits = len(a) == len(b) == 3 and len(bank) == 2 and a[0] == b[1] and min(*a, *b, *bank) > 0
    fits = fits and 0 < topk <= bank[0] and a[2] == b[2] == (bank[0] if whole else topk)
    if fits and not whole:
        fits = all(
            parts[w].shape == (*s[:2], topk - 1) for w, s in zip(_WEIGHTS, (a, b), strict=True)
        )
    require(
        stored, fits, "VB-LoRA", "logits_A (r, in/v, n), logits_B (out/v, r, n), vector_bank (n, v)"
    )
    shape = (b[0] * bank[1], a[1] * bank[1])
    return MadeDelta(VBLoRA(parts, topk, shape), tuple(parts))


KINDS = (
    Kind(
        "vblora",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=(_LOGITS[0], _INDICES[0]),
        integers=_INDICES,
        compared="formula, PEFT",
    ),
)

"""LoRA of an embedding, as PEFT stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, Delta, Facts, ReadRows
from loramerge.adapter.floats import put, times, values
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.lora import LowRank
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import transposed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Embedding", "as_embedding"]


@final
@dataclass(frozen=True, eq=False)
class Embedding(Scaled):
    """`ΔW = scale · (up @ down)ᵀ`: LoRA of an embedding `(tokens, dim)`, as PEFT stores it.

    Args:
        down: `lora_embedding_A (r, tokens)`; up: `lora_embedding_B (dim, r)`.
    """

    down: Tensor
    up: Tensor
    shape: tuple[int, ...]
    scale: Scale = Scale()

    kind: ClassVar[str] = "lora-embedding"
    facts: ClassVar[Facts] = Facts(peft_type="LORA")

    @classmethod
    def of(cls, down: Tensor, up: Tensor, scale: Scale = Scale(), what: str = "") -> Embedding:
        """Make the delta of stored factors, checking that they fit.

        Raises:
            ShapeError: if the ranks differ.
        """
        if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
            raise ShapeError(
                "the factors of an embedding do not fit together",
                module=what,
                expected="lora_embedding_A (r, tokens) and lora_embedding_B (dim, r)",
                found=f"A {list(down.shape)} and B {list(up.shape)}",
            )
        return cls(down, up, (down.shape[1], up.shape[0]), scale)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("embedding_up",)

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        return times(values(self.down, dtype).T, self.factor), values(self.up, dtype).T

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        up, down = self.factors(dtype)
        return up @ down

    def stored(self) -> Mapping[str, Tensor]:
        return {"embedding_down": self.down, "embedding_up": self.up}

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        up, down = self.factors(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(up[start:stop] @ down, out, fresh)

        return add


def as_embedding(delta: Delta) -> Delta:
    """Return a plain LoRA as one of an embedding, other deltas unchanged."""
    if not isinstance(delta, LowRank) or len(delta.shape) != 2:
        return delta
    return Embedding(transposed(delta.up), transposed(delta.down), delta.shape, delta.scale)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only("embedding_down", "embedding_up")
    if len(parts) < 2:
        return None
    down, up = parts["embedding_down"], parts["embedding_up"]
    return MadeDelta(Embedding.of(down, up, stored.scale(), stored.module), (*parts, "alpha"))


KINDS = (
    Kind(
        "lora-embedding",
        roles=("embedding_down", "embedding_up"),
        make=_make,
        suffixes={
            "peft-lora": {
                "embedding_down": (".lora_embedding_A", ".lora_embedding_A.default"),
                "embedding_up": (".lora_embedding_B", ".lora_embedding_B.default"),
            }
        },
        always=("embedding_up",),
        compared="formula, PEFT",
    ),
)

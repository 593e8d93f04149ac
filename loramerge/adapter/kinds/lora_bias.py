"""The bias of a LoRA's second factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import AddRows, AlphaPlace, Delta, Facts, ReadRows
from loramerge.adapter.floats import put, times, values
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.bases.scaled import Scaled
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.adapter.kinds.full import Full
from loramerge.errors import UnsupportedKind
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "AddedBias", "beside_factors"]


@final
@dataclass(frozen=True, eq=False)
class AddedBias(Scaled):
    """`Δb = scale · value`: the bias of PEFT's `lora_B` (`lora_bias`), with the factors' scale.

    Args:
        value: `(out,)`.
        inner: rank of the factors it stands beside.
    """

    value: Tensor
    shape: tuple[int, ...]
    scale: Scale
    inner: int

    kind: ClassVar[str] = "bias"
    facts: ClassVar[Facts] = Facts(peft_type="LORA")

    @classmethod
    def of(cls, value: Tensor, scale: Scale, rank: int) -> AddedBias:
        """Make the delta of a stored bias."""
        return cls(value, value.shape, scale, rank)

    @property
    def core(self) -> Scaled | None:
        return None

    @property
    def scale_dim(self) -> int:
        return self.inner

    @property
    def alpha(self) -> float | None:
        return None  # the factors state it

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        return times(values(self.value, dtype), self.factor)

    def stored(self) -> Mapping[str, Tensor]:
        return {"up_bias": self.value}

    @property
    def carriers(self) -> tuple[str, ...]:
        return ("up_bias",)

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        # where alpha is kept, its sign goes into the tensors of the weight, and so here
        factor = self.factor if alpha == "folded" else math.copysign(1.0, self.factor)
        return self._written(factor, dtype)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> AddedBias:
        value = rows_of(self.value, ranges)
        return replace(self, value=value, shape=value.shape)

    def respelled(self, roles: Set[str], beside: Delta | None = None) -> Delta:
        if "up_bias" in roles and isinstance(beside, Scaled) and beside.factor == self.factor:
            return self
        return Full.of(ArrayTensor(self.dense(dtype="float64")), "diff_b")

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        rows = self.dense(dtype=dtype).reshape(self.flat_shape)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            put(rows[start:stop], out, fresh)

        return add


def beside_factors(bias: Delta, weight: Delta | None) -> Delta:
    """Return a change of the bias as the factors of a weight scale it, if they have a scale."""
    if not isinstance(weight, Scaled) or not weight.factor or not weight.rank:
        return bias
    return AddedBias.of(ArrayTensor(bias.dense() / weight.factor), weight.scale, weight.rank)


def _make_bias(stored: Stored, weight: MadeDelta | None) -> MadeDelta | None:
    core = None if weight is None else weight.delta.core
    if "up_bias" not in stored.tensors or core is None or core.dim is None:
        return None
    if not stored.tensors.keys().isdisjoint(("set_bias", "tuned_bias")):
        raise UnsupportedKind(
            "the bias of the base is replaced, and that of the factors is added to it",
            module=stored.module,
            hint="merge it in PEFT with merge_and_unload()",
        )
    delta = AddedBias.of(stored.tensors["up_bias"], stored.scale(), core.dim)
    return MadeDelta(delta, ("up_bias",))


# no role betrays it: the weight beside it may be of several kinds
KINDS = (
    Kind(
        "lora-bias",
        roles=(),
        make_bias=_make_bias,
        suffixes={"peft-lora": {"up_bias": (".lora_B.bias", ".lora_B.default.bias")}},
        always=("up_bias",),
        compared="formula, PEFT",
    ),
)

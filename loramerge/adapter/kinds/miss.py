"""MiSS and Bone: one block that is repeated along the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.computed import (
    ComputedPair,
    OfBase,
    flat,
    number,
    require,
    suffixes,
)
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.files.tensors import Tensor
from loramerge.records import record

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "Bat", "MiSS"]

_ROLES = ("miss_block", "bone_block")


def _peft_type(parts: Mapping[str, Tensor]) -> str:
    return "BONE" if "bone_block" in parts else "MISS"


@final
@record(eq=False)
class MiSS(ComputedPair):
    """`ΔW[o, i] = b[i mod r, o]` (Kang and Yin 2024; PEFT's MiSS, which was Bone before).

    Args:
        parts: `block (r, out)`; of the mini form `(r, m)`, whose columns are repeated along the outputs.
        mini: whether it is the mini form.
    """

    parts: Mapping[str, Tensor]
    mini: bool
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "miss"

    @property
    def facts(self) -> Facts:
        return Facts(compact=True, weighs=False, peft_type=_peft_type(self.parts))

    @property
    def form(self) -> str:
        return f"{self.kind}, mini" if self.mini else self.kind

    @property
    def numbers(self) -> tuple[float, ...]:
        return (float(self.mini),)

    @property
    def block(self) -> Tensor:
        """The stored block."""
        return next(iter(self.parts.values()))

    @property
    def dim(self) -> int:
        return self.block.shape[0]

    def may_fit(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        r, width = self.block.shape
        return r <= columns and (rows % width == 0 if self.mini else rows == width)

    def pair_of(self, dtype: str) -> tuple[Array, Array]:
        import numpy as np

        rows, columns = self.flat_shape
        up = np.tile(values(self.block, dtype).T, (rows // self.block.shape[1], 1))
        repeats = -(-columns // self.dim)
        return up, np.tile(np.eye(self.dim, dtype=dtype), (1, repeats))[:, :columns]


@final
@record(eq=False)
class Bat(OfBase):
    """`ΔW_mn = W_mn b_m + b_m` for blocks of r × r (MiSS with `init_weights="bat"`; Bone's too).

    Args:
        parts: `block (out/r, r, r)`.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "miss"

    @property
    def facts(self) -> Facts:  # type: ignore[override]
        return Facts(weighs=False, peft_type=_peft_type(self.parts))

    @property
    def form(self) -> str:
        return f"{self.kind} of blocks"

    @property
    def block(self) -> Tensor:
        """The stored blocks."""
        return next(iter(self.parts.values()))

    def fits(self, shape: tuple[int, ...]) -> bool:
        rows, columns = flat(shape)
        count, size, _ = self.block.shape
        return rows == count * size and columns % size == 0

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        blocks = times(values(self.block, dtype), self.weight)
        size = blocks.shape[1]

        def change(start: int, stop: int, base: Any) -> Any:
            number, row = np.divmod(np.arange(start, stop), size)
            mixed = base.reshape(len(base), -1, size) @ blocks[number]
            return (mixed + blocks[number, row][:, None]).reshape(base.shape)

        return change


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only(*_ROLES)
    block = next(iter(parts.values())).shape
    form = stored.config.get("init_weights", True)
    if form == "bat":
        fits = len(block) == 3 and block[1] == block[2] and min(block) > 0
        require(stored, fits, "MiSS", "block (out/r, r, r)")
        shape = shape_like((block[0] * block[1], 0), stored.like)
        return MadeDelta(Bat(parts, shape), tuple(parts))
    require(
        stored, len(block) == 2 and min(block) > 0 and len(parts) == 1, "MiSS", "block (r, out)"
    )
    number(stored, "r", block[0])  # without a configuration the form is not known
    mini = form == "mini"
    delta = MiSS(parts, mini, (0, 0) if mini else (block[1], 0))
    return MadeDelta(delta.of_module(stored.like), tuple(parts))


KINDS = (
    Kind(
        "miss",
        roles=_ROLES,
        make=_make,
        suffixes={"peft": suffixes(*_ROLES)},
        always=_ROLES,
        compared="formula, PEFT",
    ),
)

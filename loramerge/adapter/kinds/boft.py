"""BOFT: the weight rotated by the stages of a butterfly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Facts, ReadRows
from loramerge.adapter.floats import values
from loramerge.adapter.kinds.bases.dependent import ChangeRows
from loramerge.adapter.kinds.bases.rotation import (
    InputRotation,
    OutputRotation,
    cayley,
    check_blocks,
    input_shape,
)
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["BOFT", "KINDS", "PeftBOFT"]


@final
@dataclass(frozen=True, eq=False)
class BOFT(OutputRotation):
    """`W' = s ⊙ B_m … B_1 W`, butterfly stages of block rotations (Liu et al. 2023; LyCORIS' boft).

    Stage i exchanges within groups of `2^i · b` rows before it rotates blocks of b.

    Args:
        parts: `oft_blocks (m, n, b, b)` with n·b outputs; `alpha` and `rescale` as in `OFT`.
        swapped: the halves of the rows are exchanged before and after, as where a file stores them so.

    All rows are mixed, so the whole weight is held while rows of ΔW are made.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0
    swapped: bool = False

    kind: ClassVar[str] = "boft"

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> BOFT:
        """Make the delta of stored blocks; the number of inputs is the family's.

        Raises:
            ShapeError: if they do not fit together.
        """
        outputs = check_blocks(parts, 4, what)
        stages, _, size, _ = parts["oft_blocks"].shape
        if size % 2 or outputs % (2**stages * (size // 2)):
            raise ShapeError(
                "the stages of a BOFT do not fit its outputs",
                module=what,
                expected="outputs divisible by the block size times 2 to the stages before the last",
                found=f"oft_blocks {list(parts['oft_blocks'].shape)}",
            )
        return cls(dict(parts), shape_like((outputs, 0), like))

    def scaled(self, weight: float) -> BOFT:
        return replace(self, weight=self.weight * weight)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (*super().numbers, float(self.swapped))

    def rows(self, ranges: Sequence[tuple[int, int]]) -> BOFT:
        half = self.outputs // 2
        if tuple(ranges) != ((half, self.outputs), (0, half)):
            super().rows(ranges)  # refuses
        return replace(self, swapped=not self.swapped)

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        whole: list[Any] = []

        def change(start: int, stop: int, base: Any) -> Any:
            if not whole:
                whole.append(self._changed(read(0, self.outputs), dtype))
            return whole[0][start:stop]

        return change

    def _changed(self, base: Any, dtype: str) -> Any:
        """Return the whole ΔW."""
        import numpy as np

        rotations = self.rotations().astype(dtype)
        size = rotations.shape[-1]
        rows, columns = base.shape
        w = np.roll(base, rows // 2, 0) if self.swapped else base
        for stage, blocks in enumerate(rotations):
            step = 2**stage * (size // 2)
            w = w.reshape(-1, 2, step, columns).swapaxes(1, 2).reshape(-1, size, columns)
            w = (blocks @ w).reshape(-1, step, 2, columns).swapaxes(1, 2).reshape(-1, columns)
        rescale = self.rescale()
        if rescale is not None:
            w = w * rescale.astype(dtype)[:, None]
        change = (np.roll(w, rows // 2, 0) if self.swapped else w) - base
        return change if self.weight == 1.0 else self.weight * change


@final
@dataclass(frozen=True, eq=False)
class PeftBOFT(InputRotation):
    """`W' = s ⊙ W Mᵀ`, M butterfly stages of blocks over the inputs: BOFT as PEFT has it.

    Args:
        parts: PEFT's `boft_r (m, n, b, b)` and `boft_s (out, 1)`, a factor per output.
        block: b. Blocks run over the flattened `in·kh·kw`.
    """

    parts: Mapping[str, Tensor]
    block: int
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "boft"
    facts: ClassVar[Facts] = Facts(weighs=False, peft_type="BOFT")

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> PeftBOFT:
        """Make the delta of stored blocks.

        Raises:
            ShapeError: if blocks, factors and stages do not fit.
        """
        blocks, factors = parts["boft_r"].shape, parts["boft_s"]
        fits = len(blocks) == 4 and blocks[2] == blocks[3] and parts["boft_r"].size > 0
        if fits and blocks[0] > 1:
            fits = blocks[2] % 2 == 0 and blocks[1] % 2 ** (blocks[0] - 1) == 0
        if not fits:
            raise ShapeError(
                "these are not the blocks of a BOFT",
                module=what,
                expected="boft_R (m, n, b, b), of m > 1 stages with even b and n a multiple of 2^(m−1)",
                found=list(blocks),
            )
        shape = input_shape(blocks[1] * blocks[2], factors.size, like)
        return cls(dict(parts), blocks[2], shape)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.block,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        rows, columns = shape[0], math.prod(shape[1:])
        blocks = self.parts["boft_r"].shape[-3]
        return self.parts["boft_s"].size == rows and self.columns_fit(columns, blocks)

    def scaled(self, weight: float) -> PeftBOFT:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> PeftBOFT:
        height = sum(stop - start for start, stop in ranges)
        factors = rows_of(self.parts["boft_s"], ranges)
        parts = {**self.parts, "boft_s": factors}
        return replace(self, parts=parts, shape=(height, *self.shape[1:]))

    def rotations(self) -> Array:
        blocks = values(self.parts["boft_r"], "float64")
        return cayley(-0.5 * (blocks - blocks.swapaxes(-1, -2)))

    def output_factors(self) -> Array:
        return values(self.parts["boft_s"], "float64").reshape(-1)


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only("oft_blocks", "rescale", "alpha")
    if "oft_blocks" not in parts or len(parts["oft_blocks"].shape) != 4:
        return None
    return MadeDelta(BOFT.of(parts, stored.like, stored.module), tuple(parts))


def _make_peft(stored: Stored) -> MadeDelta | None:
    parts = stored.only("boft_r", "boft_s")
    if len(parts) < 2:
        return None
    return MadeDelta(PeftBOFT.of(parts, stored.like, stored.module), tuple(parts))


# stages are an axis more of what LyCORIS calls OFT's blocks
KINDS = (
    Kind("boft", roles=("oft_blocks", "rescale"), make=_make, compared="formula, LyCORIS"),
    Kind(
        "peft-boft",
        roles=("boft_r", "boft_s"),
        make=_make_peft,
        suffixes={
            "peft": {
                "boft_r": (".boft_R", ".boft_R.default"),
                "boft_s": (".boft_s", ".boft_s.default"),
            }
        },
        always=("boft_r",),
        compared="formula, PEFT",
    ),
)

"""Rotations of the weight: blocks of the outputs (LyCORIS, kohya) or of the inputs (PEFT)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from loramerge.adapter.delta import AlphaPlace, Facts, ReadRows
from loramerge.adapter.floats import cast, values
from loramerge.adapter.kinds.bases.dependent import ChangeRows, Dependent
from loramerge.adapter.kinds.bases.shapes import shape_like
from loramerge.errors import ShapeError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = [
    "InputRotation",
    "OutputRotation",
    "cayley",
    "check_blocks",
    "encoded_parts",
    "input_shape",
]


def encoded_parts(parts: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Return tensors in a float type; alpha and tensors of other types stay unchanged."""
    return {
        role: cast(values(t, "float64"), dtype, role)
        if dtype not in (None, t.dtype) and is_float(t.dtype) and role != "alpha"
        else t
        for role, t in parts.items()
    }


def skew(blocks: Array, constraint: float) -> Array:
    """Return `Q = B − Bᵀ`, shrunk to the norm `constraint` where that is > 0 and exceeded."""
    import numpy as np

    q = blocks - blocks.swapaxes(-1, -2)
    norm = float(np.linalg.norm(q))
    return q * (constraint / norm) if 0 < constraint < norm else q


def cayley(q: Array) -> Array:
    """Return the rotations `(I + Q)(I − Q)⁻¹` of skew blocks."""
    import numpy as np

    eye = np.eye(q.shape[-1])
    return np.linalg.solve(eye - q, eye + q)  # the two commute


class OutputRotation(Dependent):
    """Blocks that rotate outputs, a constraint on them, factors per output; abstract."""

    facts: ClassVar[Facts] = Facts(weighs=False, constrained=True)

    parts: Mapping[str, Tensor]

    @property
    def alpha(self) -> float | None:
        """The constraint on ‖Q‖ per output, which these kinds store as alpha; 0 is none."""
        return self.parts["alpha"].item() if "alpha" in self.parts else None

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.alpha or 0.0,)

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return math.prod(self.parts["oft_blocks"].shape[-3:-1])

    @property
    def form(self) -> str:
        if self.alpha:
            return f"{self.kind} with constraint"
        return f"{self.kind} with factors" if "rescale" in self.parts else self.kind

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.outputs

    def stored(self) -> Mapping[str, Tensor]:
        return {role: tensor for role, tensor in self.parts.items() if role != "alpha"}

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        self.require_whole()
        return encoded_parts(self.parts, dtype)

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        return False

    def rotations(self) -> Array:
        """Return the rotation of every block, in float64."""
        constraint = (self.alpha or 0.0) * self.outputs
        return cayley(skew(values(self.parts["oft_blocks"], "float64"), constraint))

    def rescale(self) -> Array | None:
        """Return the factor of every output, if there are any."""
        tensor = self.parts.get("rescale")
        return None if tensor is None else values(tensor, "float64").reshape(-1)


def check_blocks(parts: Mapping[str, Tensor], axes: int, what: str) -> int:
    """Return the number of outputs.

    Raises:
        ShapeError: if the blocks are not square or the factors not as many as outputs.
    """
    shape = parts["oft_blocks"].shape
    outputs = math.prod(shape[-3:-1])
    rescale = parts.get("rescale")
    square = len(shape) == axes and shape[-1] == shape[-2] and outputs > 0
    square = square and ("alpha" not in parts or parts["alpha"].size == 1)
    if not square or (rescale is not None and rescale.size != outputs):
        raise ShapeError(
            "the blocks of an OFT do not fit together",
            module=what,
            expected="square blocks (n, b, b) or (stages, n, b, b), one alpha, and n·b factors if any",
            found=", ".join(f"{role} {list(t.shape)}" for role, t in parts.items()),
        )
    return outputs


class InputRotation(Dependent):
    """`W' = s ⊙ W Mᵀ`, M block-diagonal over the inputs, as PEFT has OFT and BOFT; abstract.

    M is the product of butterfly stages: stage i shuffles each group of `2^i · b` in pieces of b/2, the
    pieces of its first half and of its second by turns, rotates blocks, and shuffles back.

    Args:
        block: b. Blocks run over the flattened `in·kh·kw`.
    """

    parts: Mapping[str, Tensor]
    block: int

    @abstractmethod
    def rotations(self) -> Array:
        """Return the rotation of every block of every stage, `(m, n, b, b)` in float64."""

    def output_factors(self) -> Array | None:
        """Return the factor of every output, if there are any."""
        return None

    def columns_fit(self, columns: int, blocks: int) -> bool:
        """Return whether a number of blocks, or one shared block, covers the flattened inputs."""
        return columns == blocks * self.block or (blocks == 1 and columns % self.block == 0)

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def encoded(self, dtype: str | None, *, alpha: AlphaPlace) -> dict[str, Tensor]:
        self.require_whole()
        return encoded_parts(self.parts, dtype)

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        # W' = W @ (I + E), block by block, stage by stage
        stages = (self.rotations().swapaxes(-1, -2) - np.eye(self.block)).astype(dtype)
        factors = self.output_factors()

        def change(start: int, stop: int, base: Any) -> Any:
            total = self._step(base, stages[0], 0)
            for stage, blocks in enumerate(stages[1:], 1):
                total = total + self._step(base + total, blocks, stage)
            if factors is not None:
                f = factors[start:stop, None]
                total = total * f.astype(dtype) + base * (f - 1.0).astype(dtype)
            return total if self.weight == 1.0 else self.weight * total

        return change

    def _step(self, rows: Any, blocks: Any, stage: int) -> Any:
        """Return the change of rows by a stage."""
        size, height, half = self.block, len(rows), self.block // 2
        group = 2**stage  # blocks that are shuffled together
        if stage:  # the halves of a group are shuffled: by turns a piece of either
            rows = rows.reshape(height, -1, 2, group, half).swapaxes(2, 3)
        split = rows.reshape(height, -1, size).swapaxes(0, 1)
        moved = (split @ blocks).swapaxes(0, 1)
        if stage:
            moved = moved.reshape(height, -1, group, 2, half).swapaxes(2, 3)
        return moved.reshape(height, -1)


def input_shape(columns: int, outputs: int, like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the part of a shape that its flattened inputs determine."""
    if like is not None and math.prod(like[1:]) == columns:
        return shape_like((outputs, like[1]), like)
    return (outputs, columns)

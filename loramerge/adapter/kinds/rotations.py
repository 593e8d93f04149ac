"""Kinds that rotate the weight they change: OFT and BOFT, of LyCORIS and kohya, and of PEFT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import ReadRows, cast, values
from loramerge.adapter.kinds.dependent import ChangeRows, Dependent, shape_like
from loramerge.errors import ShapeError
from loramerge.files.dtypes import is_float
from loramerge.files.tensors import Tensor
from loramerge.files.views import rows_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["BOFT", "OFT", "InputRotation"]

_EPS = 6e-5  # PEFT's for constrained OFT


def _encoded(parts: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    return {
        role: cast(values(t, "float64"), dtype, role)
        if dtype not in (None, t.dtype) and is_float(t.dtype) and role != "alpha"
        else t
        for role, t in parts.items()
    }


def _skew(blocks: Array, constraint: float) -> Array:
    """Return `Q = B − Bᵀ`, shrunk to the norm `constraint` where that is > 0 and exceeded."""
    import numpy as np

    q = blocks - blocks.swapaxes(-1, -2)
    norm = float(np.linalg.norm(q))
    return q * (constraint / norm) if 0 < constraint < norm else q


def _cayley(q: Array) -> Array:
    """Return the rotations `(I + Q)(I − Q)⁻¹` of skew blocks."""
    import numpy as np

    eye = np.eye(q.shape[-1])
    return np.linalg.solve(eye - q, eye + q)  # the two commute


class _OutputRotation(Dependent):
    """What OFT and BOFT of the outputs share: blocks, a constraint, factors per output; abstract."""

    parts: Mapping[str, Tensor]

    @property
    def alpha(self) -> float | None:
        """The constraint on ‖Q‖ per output, which these kinds store as alpha; 0 is none."""
        return self.parts["alpha"].item() if "alpha" in self.parts else None

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.weight, self.alpha or 0.0)

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return math.prod(self.parts["oft_blocks"].shape[-3:-1])

    def fits(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.outputs

    def stored(self) -> Mapping[str, Tensor]:
        return {role: tensor for role, tensor in self.parts.items() if role != "alpha"}

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        self.require_whole()
        return _encoded(self.parts, dtype)

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        return False

    def rotations(self) -> Array:
        """Return the rotation of every block, in float64."""
        constraint = (self.alpha or 0.0) * self.outputs
        return _cayley(_skew(values(self.parts["oft_blocks"], "float64"), constraint))

    def rescale(self) -> Array | None:
        """Return the factor of every output, if there are any."""
        tensor = self.parts.get("rescale")
        return None if tensor is None else values(tensor, "float64").reshape(-1)


def _check_blocks(parts: Mapping[str, Tensor], axes: int, what: str) -> int:
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


@final
@dataclass(frozen=True, eq=False)
class OFT(_OutputRotation):
    """`W' = s ⊙ Rᵀ W`, R block-diagonal (Qiu et al. 2023; kohya's oft and LyCORIS' diag-oft).

    `R = (I + Q)(I − Q)⁻¹` with `Q = B − Bᵀ` for each block B; `V[k,m] = Σ_n R[k,n,m] W[k,n]`.

    Args:
        parts: `oft_blocks (n, b, b)` with n·b outputs; `alpha`, the constraint: ‖Q‖ of all blocks
            together is at most alpha · outputs, where alpha is > 0 (kohya reads 0 as "no change",
            LyCORIS as "no constraint"; the latter is taken); `rescale`, a factor per output.
    """

    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    weight: float = 1.0

    kind: ClassVar[str] = "oft"  # type: ignore[misc]

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> OFT:
        """Make the delta of stored blocks; the number of inputs is the family's.

        Raises:
            ShapeError: if they do not fit together.
        """
        outputs = _check_blocks(parts, 3, what)
        return cls(dict(parts), shape_like((outputs, 0), like))

    def scaled(self, weight: float) -> OFT:
        return replace(self, weight=self.weight * weight)

    @property
    def block(self) -> int:
        """Rows of a block."""
        return self.parts["oft_blocks"].shape[1]

    def splits_exactly(self, bounds: Sequence[int]) -> bool:
        """At borders of blocks, if no constraint binds all blocks together."""
        return not self.alpha and not any(bound % self.block for bound in bounds)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> OFT:
        height = sum(stop - start for start, stop in ranges)
        # a constraint is about the norm of all blocks, which places do not change
        bound = bool(self.alpha) and height < self.outputs
        if bound or any(edge % self.block for pair in ranges for edge in pair):
            super().rows(ranges)  # refuses
        of_blocks = [(start // self.block, stop // self.block) for start, stop in ranges]
        parts = {**self.parts, "oft_blocks": rows_of(self.parts["oft_blocks"], of_blocks)}
        if "rescale" in parts:
            parts["rescale"] = rows_of(parts["rescale"], ranges)
        return replace(self, parts=parts, shape=(height, *self.shape[1:]))

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        count, size = self.parts["oft_blocks"].shape[:2]
        turned = self.rotations().swapaxes(1, 2).copy()  # (n, b, b): W' = turned @ W
        rescale = self.rescale()
        if rescale is not None:
            turned *= rescale.reshape(count, size, 1)
        turned -= np.eye(size)
        turned = (self.weight * turned).astype(dtype)

        def change(start: int, stop: int, base: Any) -> Any:
            first, last = start // size, -(-stop // size)
            low, high = first * size, last * size
            rows = base if (low, high) == (start, stop) else read(low, high)
            blocks = turned[first:last] @ rows.reshape(last - first, size, -1)
            return blocks.reshape(high - low, -1)[start - low : stop - low]

        return change


@final
@dataclass(frozen=True, eq=False)
class BOFT(_OutputRotation):
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

    kind: ClassVar[str] = "boft"  # type: ignore[misc]

    @classmethod
    def of(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> BOFT:
        """Make the delta of stored blocks; the number of inputs is the family's.

        Raises:
            ShapeError: if they do not fit together.
        """
        outputs = _check_blocks(parts, 4, what)
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
class InputRotation(Dependent):
    """`W' = s ⊙ W Mᵀ`, M block-diagonal over the inputs: OFT and BOFT as PEFT has them.

    Args:
        parts: PEFT's `oft_r (n, b(b−1)/2)`, the upper triangles of skew blocks (one block where all
            share it); or `boft_r (m, n, b, b)` and `boft_s (out, 1)`, a factor per output. M is the
            product of m butterfly stages: stage i shuffles each group of `2^i · b` in pieces of b/2,
            the pieces of its first half and of its second by turns, rotates blocks, and shuffles back.
        block: b. Blocks run over the flattened `in·kh·kw`.
        terms: of the Neumann series PEFT takes for the inverse, None for the inverse itself.
        constraint: the largest norm of a skew block, to which larger ones are shrunk (`coft`); PEFT
            divides its `eps` by the square root of the number of blocks. None is none.
    """

    parts: Mapping[str, Tensor]
    block: int
    shape: tuple[int, ...]
    terms: int | None = None
    constraint: float | None = None
    weight: float = 1.0
    kind: str = "oft"

    @classmethod
    def of_oft(
        cls,
        parts: Mapping[str, Tensor],
        config: Mapping[str, Any],
        like: tuple[int, ...] | None = None,
        what: str = "",
    ) -> InputRotation:
        """Make the delta of PEFT's OFT.

        Raises:
            ShapeError: if the triangles are of no block, or the configuration makes no sense.
        """
        stored = parts["oft_r"].shape
        block = round((1 + math.sqrt(1 + 8 * stored[-1])) / 2) if stored else 0
        if len(stored) != 2 or not stored[0] or block * (block - 1) != 2 * stored[1]:
            raise ShapeError(
                "this is no upper triangle of a block",
                module=what,
                expected="oft_R (n, b·(b−1)/2)",
                found=list(stored),
            )
        shared = bool(config.get("block_share"))
        terms = config.get("num_cayley_neumann_terms", 5)
        if not isinstance(terms, int):
            raise ShapeError(
                "num_cayley_neumann_terms is not a number", module=what, found=repr(terms)
            )
        neumann = terms if config.get("use_cayley_neumann", True) else None
        constraint = None
        if config.get("coft"):
            eps = config.get("eps", _EPS)
            if not isinstance(eps, (int, float)) or not eps > 0:
                raise ShapeError("eps of coft is no positive number", module=what, found=repr(eps))
            constraint = eps / math.sqrt(stored[0])
        columns = 0 if shared else stored[0] * block
        return cls(dict(parts), block, _input_shape(columns, 0, like), neumann, constraint)

    @classmethod
    def of_boft(
        cls, parts: Mapping[str, Tensor], like: tuple[int, ...] | None = None, what: str = ""
    ) -> InputRotation:
        """Make the delta of PEFT's BOFT.

        Raises:
            ShapeError: if blocks, factors and stages do not fit.
        """
        blocks, factors = parts["boft_r"].shape, parts["boft_s"]
        fits = len(blocks) == 4 and blocks[2] == blocks[3] and parts["boft_r"].size > 0
        if fits and blocks[0] > 1:
            fits = blocks[2] % 2 == 0 and blocks[1] % 2 ** (blocks[0] - 1) == 0
        if not fits:
            raise ShapeError(
                "these are no blocks of a BOFT",
                module=what,
                expected="boft_R (m, n, b, b), of m > 1 stages with even b and n a multiple of 2^(m−1)",
                found=list(blocks),
            )
        shape = _input_shape(blocks[1] * blocks[2], factors.size, like)
        return cls(dict(parts), blocks[2], shape, kind="boft")

    @property
    def peft_type(self) -> str | None:  # type: ignore[override]
        return self.kind.upper()

    @property
    def numbers(self) -> tuple[float, ...]:
        terms = -1.0 if self.terms is None else self.terms
        return (self.weight, self.block, terms, self.constraint or 0.0)

    def fits(self, shape: tuple[int, ...]) -> bool:
        factors = self.parts.get("boft_s")
        columns = math.prod(shape[1:])
        blocks = self.parts.get("boft_r", self.parts.get("oft_r"))
        count = 0 if blocks is None else blocks.shape[-3 if "boft_r" in self.parts else 0]
        return (factors is None or factors.size == shape[0]) and (
            columns == count * self.block or (count == 1 and columns % self.block == 0)
        )

    def scaled(self, weight: float) -> InputRotation:
        return replace(self, weight=self.weight * weight)

    def rows(self, ranges: Sequence[tuple[int, int]]) -> InputRotation:
        height = sum(stop - start for start, stop in ranges)
        factors = {r: rows_of(t, ranges) for r, t in self.parts.items() if r == "boft_s"}
        return replace(self, parts={**self.parts, **factors}, shape=(height, *self.shape[1:]))

    def stored(self) -> Mapping[str, Tensor]:
        return self.parts

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        self.require_whole()
        return _encoded(self.parts, dtype)

    def _rotations(self) -> Array:
        """Return the rotation of every block of every stage, `(m, n, b, b)` in float64."""
        import numpy as np

        if "boft_r" in self.parts:
            blocks = values(self.parts["boft_r"], "float64")
            return _cayley(-0.5 * (blocks - blocks.swapaxes(-1, -2)))
        upper = values(self.parts["oft_r"], "float64")
        q = np.zeros((len(upper), self.block, self.block))
        q[:, *np.triu_indices(self.block, 1)] = upper
        q -= q.swapaxes(1, 2)
        if self.constraint is not None:
            norms = np.linalg.norm(q, axis=(1, 2), keepdims=True)
            q *= np.minimum(1.0, self.constraint / np.maximum(norms, self.constraint))
        return (_cayley(-q) if self.terms is None else _neumann(q, self.terms))[None]

    def changer(self, dtype: str, read: ReadRows) -> ChangeRows:
        import numpy as np

        # W' = W @ (I + E), block by block, stage by stage
        stages = (self._rotations().swapaxes(-1, -2) - np.eye(self.block)).astype(dtype)
        stored = self.parts.get("boft_s")
        factors = None if stored is None else values(stored, "float64").reshape(-1)

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
        """Return what a stage adds to rows."""
        size, height, half = self.block, len(rows), self.block // 2
        group = 2**stage  # blocks that are shuffled together
        if stage:  # the halves of a group are shuffled: by turns a piece of either
            rows = rows.reshape(height, -1, 2, group, half).swapaxes(2, 3)
        split = rows.reshape(height, -1, size).swapaxes(0, 1)
        moved = (split @ blocks).swapaxes(0, 1)
        if stage:
            moved = moved.reshape(height, -1, group, 2, half).swapaxes(2, 3)
        return moved.reshape(height, -1)


def _input_shape(columns: int, outputs: int, like: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return what is known of a shape from its flattened inputs."""
    if like is not None and math.prod(like[1:]) == columns:
        return shape_like((outputs, like[1]), like)
    return (outputs, columns)


def _neumann(q: Array, terms: int) -> Array:
    """Return PEFT's `I + 2Q + 2Q² + … + Q^(terms−1)`; the last power counts once."""
    import numpy as np

    rotation = np.broadcast_to(np.eye(q.shape[-1]), q.shape).copy()
    if terms <= 1:
        return rotation
    rotation += 2.0 * q
    if terms > 2:
        power = q @ q
        rotation += 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ q
            rotation += 2.0 * power
        rotation += power @ q
    return rotation

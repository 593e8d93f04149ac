"""LoRA of linear layers and convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, final

from loramerge.adapter.delta import Delta, Facts
from loramerge.adapter.floats import times, values
from loramerge.adapter.kinds.bases.block_diagonal import block_columns
from loramerge.adapter.kinds.bases.factored import Factored
from loramerge.adapter.kinds.bases.joining import Placed, filled
from loramerge.adapter.kinds.bases.scale import Scale
from loramerge.adapter.kinds.declaration import Kind, MadeDelta, Stored
from loramerge.errors import ShapeError
from loramerge.files.tensors import ArrayTensor, Tensor
from loramerge.files.views import Derived, rows_of, same_bytes, unread_like
from loramerge.records import record, replaced

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["KINDS", "LowRank", "as_lora", "join_loras", "join_low_rank", "without_values"]


@final
@record(eq=False)
class LowRank(Factored):
    """`ΔW = scale · up @ down`.

    Args:
        up: `(out, r)`, or `(out, r, 1, 1)` for convolutions.
        down: `(r, in)`, or `(r, in, kh, kw)`.
        shape: of ΔW.
    """

    up: Tensor
    down: Tensor
    shape: tuple[int, ...]
    scale: Scale = Scale()

    facts: ClassVar[Facts] = Facts(plain=True, magnitudes=True, peft_type="LORA")
    kind: ClassVar[str] = "lora"

    def __init__(
        self, up: Tensor, down: Tensor, shape: tuple[int, ...], scale: Scale = Scale()
    ) -> None:
        values = self.__dict__  # thousands are made: a third of what the records' own takes
        values["up"], values["down"], values["shape"], values["scale"] = up, down, shape, scale

    @classmethod
    def of(cls, up: Tensor, down: Tensor, scale: Scale = Scale(), what: str = "") -> LowRank:
        """Make the delta of two stored factors, checking that they fit.

        Raises:
            ShapeError: if the inner ranks differ or the axes cannot be those of a LoRA.
        """
        inner = len(up.shape) in (2, 3, 4, 5) and math.prod(up.shape[2:]) == 1
        if not inner or len(down.shape) not in (2, 3, 4, 5) or up.shape[1] != down.shape[0]:
            raise ShapeError(
                "up and down do not fit together",
                module=what,
                expected="up (out, r) and down (r, in) or (r, in, kh, kw)",
                found=f"up {list(up.shape)} and down {list(down.shape)}",
            )
        return cls(up, down, (up.shape[0], *down.shape[1:]), scale)

    @classmethod
    def from_arrays(cls, up: Array, down: Array, shape: tuple[int, ...]) -> LowRank:
        """Make the delta of computed factors `(out, r)` and `(r, in·kh·kw)`; alpha is the rank."""
        rank = up.shape[1]
        tail = (1,) * (len(shape) - 2)
        return cls(
            ArrayTensor(up.reshape(shape[0], rank, *tail)),
            ArrayTensor(down.reshape(rank, *shape[1:])),
            shape,
            Scale(float(rank)),
        )

    def conformed(self, shape: tuple[int, ...]) -> LowRank:
        """Return the same delta with the axes of `shape`, where they differ by 1×1 kernels only."""
        if len(shape) == len(self.shape) or shape[:2] != self.shape[:2]:
            return self
        tail = (1,) * (len(shape) - 2)
        if math.prod(shape[2:]) != 1 or math.prod(self.shape[2:]) != 1:
            return self
        return replaced(
            self,
            up=self.up.reshaped((*self.up.shape[:2], *tail)),
            down=self.down.reshaped((*self.down.shape[:2], *tail)),
            shape=shape,
        )

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        up = values(self.up, dtype, (self.shape[0], self.rank))
        down = values(self.down, dtype, (self.rank, math.prod(self.shape[1:])))
        scale = self.scale.value(self.rank)
        return (up if scale == 1.0 else times(up, scale)), down

    def stored(self) -> Mapping[str, Tensor]:
        return {"up": self.up, "down": self.down}

    def split(self, bounds: Sequence[int]) -> list[Delta | None]:
        """Cut at rows: a block-diagonal up gives each part its own directions, others share all."""
        columns = None
        if len(bounds) > 2 and not self.up.unread:
            columns = block_columns(self.up.numpy().reshape(self.up.shape[:2]), bounds)
        if columns is None:
            return [self.rows((pair,)) for pair in pairwise(bounds)]
        return [
            self._block(rows, c) if c[0] < c[1] else None
            for rows, c in zip(pairwise(bounds), columns, strict=True)
        ]

    def _block(self, rows: tuple[int, int], columns: tuple[int, int]) -> LowRank:
        """Return the delta of a range of rows and the directions that alone act there."""
        first, last = columns
        whole, rank = rows_of(self.up, (rows,)), last - first
        shape = (whole.shape[0], rank, *whole.shape[2:])
        return LowRank(
            Derived(whole.dtype, shape, lambda: whole.numpy()[:, first:last]),
            rows_of(self.down, (columns,)),
            (shape[0], *self.shape[1:]),
            self.scale.moved(self.rank, rank),
        )


def as_lora(delta: Delta) -> LowRank | None:
    """Return the delta as the ordinary LoRA that it is, None if it is of another kind."""
    return delta if isinstance(delta, LowRank) else None


def without_values(delta: Delta) -> Delta:
    """Return a stand-in of the same types and shapes for an ordinary LoRA, other deltas unchanged."""
    if not isinstance(delta, LowRank):
        return delta
    return replaced(
        delta,
        up=unread_like(delta.up.dtype, delta.up.shape),
        down=unread_like(delta.down.dtype, delta.down.shape),
    )


def join_loras(placed: Placed, shape: tuple[int, ...]) -> LowRank:
    """Return ordinary LoRAs one above the other, at the smallest rank.

    Those that share their down keep it and their rank; others are block-diagonal in up, with their
    downs stacked. Where types and scales agree, no value is rounded.
    """
    deltas = [delta for _, delta in placed if isinstance(delta, LowRank)]
    first = deltas[0]
    dtypes = {(d.up.dtype, d.down.dtype, len(d.up.shape), len(d.down.shape)) for d in deltas}
    scales = {d.scale.value(d.rank) for d in deltas}
    agree = len(dtypes) == 1 and len(scales) == 1
    if len(dtypes) == 1 and all(same_bytes(delta.down, first.down) for delta in deltas):
        return _sharing(placed, deltas, shape, agree=agree)
    if any(d.up.unread or d.down.unread for d in deltas):
        return _stand_in(deltas, shape)
    if agree:
        return _stacked(placed, deltas, shape)
    return join_low_rank(placed, shape)


def _sharing(
    placed: Placed, deltas: Sequence[LowRank], shape: tuple[int, ...], *, agree: bool
) -> LowRank:
    """Put ups that share one down above each other; scales that differ are folded into them."""
    first = deltas[0]
    starts = [start for start, _ in placed]
    wide = (shape[0], *first.up.shape[1:])

    def pieces() -> list[tuple[int, Array]]:
        if agree:
            return [(s, d.up.numpy()) for s, d in zip(starts, deltas, strict=True)]
        return [
            (s, d.factors("float64")[0].reshape(d.up.shape))
            for s, d in zip(starts, deltas, strict=True)
        ]

    dtype = first.up.dtype if agree else "F64"
    up = unread_like(dtype, wide) if first.up.unread else Derived(dtype, wide, filled(wide, pieces))
    return LowRank(up, first.down, shape, first.scale if agree else Scale(float(first.rank)))


def _stand_in(deltas: Sequence[LowRank], shape: tuple[int, ...]) -> LowRank:
    """Return an upper bound for deltas without values."""
    first, rank = deltas[0], sum(d.rank for d in deltas)
    return LowRank(
        unread_like(first.up.dtype, (shape[0], rank, *first.up.shape[2:])),
        unread_like(first.down.dtype, (rank, *first.down.shape[1:])),
        shape,
        Scale(float(rank)),
    )


def _stacked(placed: Placed, deltas: Sequence[LowRank], shape: tuple[int, ...]) -> LowRank:
    """Stack factors of one type and scale without rescaling."""
    first, rank = deltas[0], sum(d.rank for d in deltas)
    tail = first.up.shape[2:]
    starts = [start for start, _ in placed]

    def up() -> Array:
        return _block_diagonal(
            [d.up.numpy().reshape(d.up.shape[:2]) for d in deltas], starts, (shape[0], rank)
        )

    def down() -> Array:
        import numpy as np

        return np.concatenate([d.down.numpy() for d in deltas])

    return LowRank(
        Derived(first.up.dtype, (shape[0], rank, *tail), up),
        Derived(first.down.dtype, (rank, *first.down.shape[1:]), down),
        shape,
        first.scale.moved(first.rank, rank),
    )


def join_low_rank(placed: Placed, shape: tuple[int, ...]) -> LowRank:
    """Return the low-rank forms of deltas one above the other, block-diagonally in up.

    Factors are float64, with the square root of each scale on both sides.
    """
    import numpy as np

    ups, downs = [], []
    for _, delta in placed:
        up, down = delta.factors("float64")
        scale = delta.scale.value(delta.rank) if isinstance(delta, LowRank) else 1.0
        root = abs(scale) ** 0.5 or 1.0
        ups.append(up / root)
        downs.append(down * root)
    starts = [start for start, _ in placed]
    rank = sum(up.shape[1] for up in ups)
    return LowRank.from_arrays(
        _block_diagonal(ups, starts, (shape[0], rank)), np.concatenate(downs), shape
    )


def _block_diagonal(ups: Sequence[Array], starts: Sequence[int], shape: tuple[int, int]) -> Array:
    import numpy as np

    whole: Array = np.zeros(shape, ups[0].dtype)
    column = 0
    for start, up in zip(starts, ups, strict=True):
        whole[start : start + up.shape[0], column : column + up.shape[1]] = up
        column += up.shape[1]
    return whole


def _make(stored: Stored) -> MadeDelta | None:
    parts = stored.only("up", "down")
    if len(parts) < 2:
        return None
    delta = LowRank.of(parts["up"], parts["down"], stored.scale(), stored.module)
    return MadeDelta(delta, (*parts, "alpha", "scale"))


KINDS = (
    Kind(
        "lora",
        roles=("up", "down"),
        make=_make,
        always=("up",),
        compared="formula, LyCORIS, PEFT, diffusers",
    ),
)

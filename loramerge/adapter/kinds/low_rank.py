"""Low-rank deltas: LoRA of linear layers and convolutions, and LoCon with a Tucker core."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self, final
from typing import cast as cast_type

from loramerge.adapter.block_diagonal import block_columns
from loramerge.adapter.delta import AddRows, Delta, ReadRows, cast, times, values
from loramerge.errors import NumericsError, ShapeError
from loramerge.files.dtypes import is_float, scalar_bytes
from loramerge.files.tensors import ArrayTensor, RawTensor, Tensor
from loramerge.files.views import Derived, rows_of, unread_like

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Factored", "LowRank", "Scale", "Scaled", "Tucker"]


@dataclass(frozen=True)
class Scale:
    """What the factors are multiplied by: `weight · alpha / rank` (rsLoRA: `/ sqrt(rank)`).

    Args:
        alpha: as the file states it; None means alpha = rank.
        stored: the tensor alpha was read from, if it was one.
        root: rsLoRA, divide by the square root of the rank.
        weight: the user's coefficient.
        ratio: what the file states in the place of alpha / rank, which it overrides.
        stated: the tensor the ratio was read from, if it was one.
    """

    alpha: float | None = None
    stored: Tensor | None = None
    root: bool = False
    weight: float = 1.0
    ratio: float | None = None
    stated: Tensor | None = None

    @property
    def unchanged(self) -> bool:
        """Whether it says what the file said, so that it can be written again as it was."""
        if self.weight != 1.0 or self.root:
            return False
        return (self.alpha is None or self.stored is not None) and (
            self.ratio is None or self.stated is not None
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """The tensors it was read from, by role."""
        read = {"alpha": self.stored, "scale": self.stated}
        return {role: tensor for role, tensor in read.items() if tensor is not None}

    def value(self, rank: int | None) -> float:
        """Return the factor for a rank; None where alpha does not count."""
        if self.ratio is not None:
            return self.weight * self.ratio
        if self.alpha is None or rank is None:
            return self.weight
        return self.weight * self.alpha / (math.sqrt(rank) if self.root else rank)

    def moved(self, rank: int, other: int) -> Scale:
        """Return the scale that is worth at rank `other` what this one is at `rank`.

        An alpha that was read keeps its type if that can say the new one.
        """
        if self.alpha is None or rank == other:
            return self
        share = other / rank
        alpha = self.alpha * (math.sqrt(share) if self.root else share)
        raw = None if self.stored is None else scalar_bytes(alpha, self.stored.dtype)
        stored = None
        if raw is not None and self.stored is not None:
            stored = RawTensor(raw, self.stored.dtype, self.stored.shape)
        return replace(self, alpha=alpha, stored=stored)


def _scaled_tensor(tensor: Tensor, factor: float, dtype: str | None, what: str) -> Tensor:
    """Return a tensor times a factor in its own or another float type, rounded once."""
    target = dtype or tensor.dtype
    if not is_float(tensor.dtype) or (factor == 1.0 and target == tensor.dtype):
        return tensor
    if tensor.unread:
        return RawTensor(b"", target, tensor.shape)
    wide = "float64" if "F64" in (target, tensor.dtype) else "float32"
    return cast(times(values(tensor, wide), factor), target, what)


def _folded(up: Tensor, down: Tensor, factor: float, dtype: str | None) -> tuple[Tensor, Tensor]:
    """Return up and down to write, with a factor folded in.

    Computed factors (float64) share it as √, so that both stay where half types are precise. Stored
    ones take it in up; where that would leave the range in which a half type is precise, a power of
    two goes into down instead.
    """
    if factor != 1.0 and up.dtype == "F64" and not up.unread:
        root = math.sqrt(abs(factor))
        return (
            _scaled_tensor(up, math.copysign(root, factor), dtype, "up"),
            _scaled_tensor(down, root, dtype, "down"),
        )
    shift = _shift(up, down, factor, dtype or up.dtype)
    return (
        _scaled_tensor(up, factor / 2.0**shift, dtype, "up"),
        _scaled_tensor(down, 2.0**shift, dtype, "down"),
    )


# smallest normal and largest numbers of half types
_RANGE = {"F16": (2.0**-14, 65504.0), "BF16": (2.0**-126, 3.38e38)}
_MARGIN = 2.0  # above it, what subnormal numbers lose is less than what the type rounds anyway


def _shift(up: Tensor, down: Tensor, factor: float, dtype: str) -> int:
    """Return the power of two that goes into down, 0 where up can take the factor alone.

    If it cannot, the typical sizes of both are made equal.
    """
    if factor in (0.0, 1.0, -1.0) or dtype not in _RANGE or up.unread:
        return 0
    import numpy as np

    smallest, largest = _RANGE[dtype]
    u = np.abs(times(values(up, "float64"), factor))
    with np.errstate(over="ignore", invalid="ignore"):
        typical = math.sqrt(float(np.mean(u * u)))
        other = math.sqrt(float(np.mean(values(down, "float64") ** 2)))
    precise = typical >= _MARGIN * smallest and float(u.max()) <= largest
    if precise or not 0 < typical < math.inf or not 0 < other < math.inf:
        return 0
    return round((math.log2(typical) - math.log2(other)) / 2)


_INFINITE = struct.pack("<f", math.inf)


def _encoded_scale(scale: Scale, rank: int, *, alpha: bool) -> tuple[float, Tensor | None]:
    """Return what to multiply up by, and the alpha tensor to write.

    Alpha is written as it was read where nothing changed; otherwise as float32, never negative: a
    sign goes into up, because some programs search for a positive scale in a loop.
    """
    value = scale.value(rank)
    if not alpha:
        return value, None
    if scale.stored is not None and scale.unchanged:
        return 1.0, scale.stored
    sign = -1.0 if value < 0 else 1.0
    try:
        single = struct.pack("<f", abs(value) * rank)
    except OverflowError:
        single = _INFINITE
    # what float32 cannot hold of alpha (a rounding of 6e-8) is not worth rounding up again
    if abs(value) * rank != 0 and struct.unpack("<f", single)[0] in (0.0, math.inf):
        raise NumericsError(
            f"alpha {abs(value) * rank:.3g} does not fit float32", hint="use a smaller weight"
        )
    return sign, RawTensor(single, "F32", ())


class Scaled(Delta):
    """What kinds with one scale before everything have in common; abstract.

    A final class adds its fields, what it computes, and `carriers`: the roles that take in what
    alpha cannot.
    """

    scale: Scale

    @property
    def core(self) -> Scaled | None:
        return self

    @property
    def alpha(self) -> float | None:
        return self.scale.alpha

    @property
    def scale_dim(self) -> int | None:
        """What alpha is divided by; None where alpha does not count."""
        return self.dim

    @property
    def factor(self) -> float:
        """What everything is multiplied by."""
        return self.scale.value(self.scale_dim)

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.factor,)

    @property
    def carriers(self) -> tuple[str, ...]:
        """The roles to multiply so that ΔW is multiplied."""
        raise NotImplementedError

    def _replaced(self, **fields: Any) -> Self:
        changed: Self = replace(cast_type(Any, self), **fields)
        return changed

    def scaled(self, weight: float) -> Self:
        return self._replaced(scale=replace(self.scale, weight=self.scale.weight * weight))

    def bare(self) -> Self:
        """Return the same without a scale, a sign apart: the configuration states the rest."""
        return self._replaced(scale=Scale(weight=math.copysign(1.0, self.factor)))

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        scale, dim = self.scale, self.scale_dim
        beside: dict[str, Tensor] = scale.beside if alpha else {}
        factor = self.factor
        if alpha and scale.unchanged:
            factor = 1.0
        elif alpha and dim is not None:
            factor, tensor = _encoded_scale(scale, dim, alpha=True)
            beside = {} if tensor is None else {"alpha": tensor}
        else:
            beside.pop("scale", None)
        return self._written(factor, dtype) | beside

    def _written(self, factor: float, dtype: str | None) -> dict[str, Tensor]:
        """Return the tensors to write, times a factor."""
        return {
            role: _scaled_tensor(tensor, factor if role in self.carriers else 1.0, dtype, role)
            for role, tensor in self.stored().items()
        }


class Factored(Scaled):
    """What kinds of two factors have in common; abstract.

    A final class adds its fields, `factors`, and `stored` with `up` and `down` among the roles.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def dense(self, base: Array | None = None, dtype: str = "float64") -> Array:
        up, down = self.factors(dtype)
        return (up @ down).reshape(self.shape)

    def encoded(self, dtype: str | None, *, alpha: bool) -> dict[str, Tensor]:
        if alpha and self.scale.ratio is not None and self.scale.unchanged:
            return self._written(1.0, dtype) | self.scale.beside
        factor, tensor = _encoded_scale(self.scale, self.rank, alpha=alpha)
        roles = self._written(factor, dtype)
        return roles if tensor is None else roles | {"alpha": tensor}

    def stated(self, dtype: str | None, alpha: float) -> dict[str, Tensor]:
        """Return the tensors to write with a given alpha (> 0); the rest goes into the factors.

        Raises:
            NumericsError: if a value does not fit the type.
        """
        factor = self.scale.value(self.rank) * self.rank / alpha
        _, tensor = _encoded_scale(Scale(alpha), self.rank, alpha=True)
        assert tensor is not None
        return self._written(factor, dtype) | {"alpha": tensor}

    def _written(self, factor: float, dtype: str | None) -> dict[str, Tensor]:
        up, down = _folded(self.up, self.down, factor, dtype)
        rest = {
            role: _scaled_tensor(tensor, 1.0, dtype, role)
            for role, tensor in self.stored().items()
            if role not in ("up", "down")
        }
        return {"up": up, "down": down, **rest}

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Self:
        up = rows_of(self.up, ranges)
        return self._replaced(up=up, shape=(up.shape[0], *self.shape[1:]))

    def row_adder(self, dtype: str = "float32", read: ReadRows | None = None) -> AddRows:
        import numpy as np

        up, down = self.factors(dtype)

        def add(start: int, stop: int, base: Any, out: Any, fresh: bool) -> None:
            if fresh:
                np.matmul(up[start:stop], down, out=out)
            else:
                out += up[start:stop] @ down

        return add


@final
@dataclass(frozen=True, eq=False)
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

    peft_type: ClassVar[str | None] = "LORA"
    kind: ClassVar[str] = "lora"  # type: ignore[misc]  # fixed by the class, per instance elsewhere

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
        return replace(
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

    def without_values(self) -> LowRank:
        """Return a stand-in of the same types and shapes."""
        return replace(
            self,
            up=unread_like(self.up.dtype, self.up.shape),
            down=unread_like(self.down.dtype, self.down.shape),
        )

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


@final
@dataclass(frozen=True, eq=False)
class Tucker(Factored):
    """`ΔW[o,i,h,w] = scale · Σ_pq up[o,p] mid[p,q,h,w] down[q,i]`: a convolution with a small core.

    Args:
        up: `(out, r, 1, 1)`; mid: `(r, r, kh, kw)`; down: `(r, in, 1, 1)`.

    Its exact low-rank form contracts mid with down and keeps the rank.
    """

    up: Tensor
    down: Tensor
    mid: Tensor
    shape: tuple[int, ...]
    scale: Scale = Scale()

    kind: ClassVar[str] = "tucker"  # type: ignore[misc]

    @classmethod
    def of(
        cls, up: Tensor, down: Tensor, mid: Tensor, scale: Scale = Scale(), what: str = ""
    ) -> Tucker:
        """Make the delta of three stored factors, checking that they fit.

        Raises:
            ShapeError: if the ranks differ.
        """
        fits = (
            len(mid.shape) == 4
            and up.shape[1:2] == mid.shape[:1]
            and down.shape[:1] == mid.shape[1:2]
            and math.prod(up.shape[2:]) == math.prod(down.shape[2:]) == 1
        )
        if not fits:
            raise ShapeError(
                "up, mid and down do not fit together",
                module=what,
                expected="up (out, r, 1, 1), mid (r, r, kh, kw), down (r, in, 1, 1)",
                found=f"up {list(up.shape)}, mid {list(mid.shape)}, down {list(down.shape)}",
            )
        return cls(up, down, mid, (up.shape[0], down.shape[1], *mid.shape[2:]), scale)

    def factors(self, dtype: str = "float32") -> tuple[Array, Array]:
        import numpy as np

        rank, inner = self.mid.shape[:2]
        up = times(values(self.up, dtype, (self.shape[0], rank)), self.scale.value(rank))
        mid = values(self.mid, dtype)
        down = values(self.down, dtype, (inner, self.shape[1]))
        joined = np.einsum("pqhw,qi->pihw", mid, down, optimize=True)
        return up, joined.reshape(rank, -1)

    def stored(self) -> Mapping[str, Tensor]:
        return {"up": self.up, "down": self.down, "mid": self.mid}

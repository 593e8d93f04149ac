"""The scale of a delta, and tensors times a factor."""

from __future__ import annotations

import math
import struct

from loramerge.adapter.floats import cast, times, values
from loramerge.errors import NumericsError
from loramerge.files.dtypes import is_float, scalar_bytes
from loramerge.files.tensors import RawTensor, Tensor
from loramerge.records import NamedTuple

__all__ = ["Scale", "encoded_scale", "scaled_tensor"]


class Scale(NamedTuple):
    """The factor before the tensors of a kind: `weight · alpha / rank` (rsLoRA: `/ sqrt(rank)`).

    Args:
        alpha: as the file states it; None means alpha = rank.
        stored: the tensor alpha was read from, if it was one.
        root: rsLoRA, divide by the square root of the rank.
        weight: the user's coefficient.
        ratio: the scale that the file states, which overrides alpha / rank.
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
        """True if it equals the file's, so that it can be written again unchanged."""
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
        """Return the scale at rank `other` that equals this one at `rank`.

        An alpha from a file keeps its type if that can store the new one.
        """
        if self.alpha is None or rank == other:
            return self
        share = other / rank
        alpha = self.alpha * (math.sqrt(share) if self.root else share)
        raw = None if self.stored is None else scalar_bytes(alpha, self.stored.dtype)
        stored = None
        if raw is not None and self.stored is not None:
            stored = RawTensor(raw, self.stored.dtype, self.stored.shape)
        return self._replace(alpha=alpha, stored=stored)


def scaled_tensor(tensor: Tensor, factor: float, dtype: str | None, what: str) -> Tensor:
    """Return a tensor times a factor in its own or another float type, rounded once."""
    target = dtype or tensor.dtype
    if not is_float(tensor.dtype) or (factor == 1.0 and target == tensor.dtype):
        return tensor
    if tensor.unread:
        return RawTensor(b"", target, tensor.shape)
    wide = "float64" if "F64" in (target, tensor.dtype) else "float32"
    return cast(times(values(tensor, wide), factor), target, what)


_INFINITE = struct.pack("<f", math.inf)


def encoded_scale(scale: Scale, rank: int, *, alpha: bool) -> tuple[float, Tensor | None]:
    """Return the factor of up, and the alpha tensor to write.

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

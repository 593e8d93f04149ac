"""4-bit weights with zero points: `weight = (code - middle) · scale + zero point`.

A scale and a zero point belong to a group of inputs of an output. In files of nunchaku the codes of 4
outputs are stored together, and outputs may alternate among modulations; ComfyUI stores rows.

Source: nunchaku, `AWQW4A16Linear` and `gemv_awq.cu`; deepcompressor's conversion to `w4x16`;
comfy-kitchen, `TensorCoreAWQW4A16Layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from loramerge.checkpoint.packing import ReadByPacking
from loramerge.checkpoint.rotated import codes_of_pairs, pairs_of_codes
from loramerge.checkpoint.storage import Array
from loramerge.checkpoint.vectors import apart, together
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import Tensor

__all__ = ["ZeroPointTensor", "codes_apart", "codes_together"]

_TOGETHER, _DEPTH, _MOST = 4, 64, 15


def codes_apart(stored: Array, columns: int) -> Array:
    """Return stored codes, `(outputs, columns)` of one byte each."""
    import numpy as np

    words = stored.reshape(-1).view(np.uint16).reshape(-1, columns // _DEPTH, _TOGETHER, 2, 8)
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    codes = ((words[..., None] >> shifts) & np.uint16(15)).astype(np.uint8)
    return codes.transpose(0, 2, 1, 3, 5, 4).reshape(-1, columns)


def codes_together(codes: Array) -> Array:
    """Return codes as they are stored, in words of 16 bits; the inverse of `codes_apart`."""
    import numpy as np

    columns = codes.shape[1]
    wide = codes.reshape(-1, _TOGETHER, columns // _DEPTH, 2, 4, 8).transpose(0, 2, 1, 3, 5, 4)
    shifts = np.arange(0, 16, 4, dtype=np.uint16)
    found: Array = (wide.astype(np.uint16) << shifts).sum(axis=-1, dtype=np.uint16)
    return found


class StoredOrder(Protocol):
    """The order in which codes and numbers are stored."""

    @property
    def middle(self) -> int:
        """The code of the zero point."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""

    def codes(self, stored: Array) -> Array:
        """Return stored codes, `(outputs, inputs)`, in the order of the model."""

    def stored(self, codes: Array) -> Array:
        """Return codes as they are stored."""

    def numbers(self, stored: Array) -> Array:
        """Return stored scales or zero points, `(outputs, groups)`."""

    def stored_numbers(self, numbers: Array) -> Array:
        """Return scales or zero points as they are stored."""


@dataclass(frozen=True)
class ByRows:
    """ComfyUI's order: rows of pairs of codes, that of the even input in the lower half of a byte."""

    shape: tuple[int, int]
    middle: ClassVar[int] = 8

    def codes(self, stored: Array) -> Array:
        """See `StoredOrder`."""
        return codes_of_pairs(stored.reshape(self.shape[0], -1))

    def stored(self, codes: Array) -> Array:
        """See `StoredOrder`."""
        return pairs_of_codes(codes)

    def numbers(self, stored: Array) -> Array:
        """See `StoredOrder`."""
        return stored.T

    def stored_numbers(self, numbers: Array) -> Array:
        """See `StoredOrder`."""
        return numbers.T


@dataclass(frozen=True)
class Interleaved:
    """Nunchaku's order.

    Args:
        splits: number of modulations among which outputs alternate.
    """

    shape: tuple[int, int]
    splits: int
    middle: ClassVar[int] = 0

    def codes(self, stored: Array) -> Array:
        """See `StoredOrder`."""
        return apart(codes_apart(stored, self.shape[1]), self.splits)

    def stored(self, codes: Array) -> Array:
        """See `StoredOrder`."""
        return codes_together(together(codes, self.splits))

    def numbers(self, stored: Array) -> Array:
        """See `StoredOrder`."""
        return apart(stored.T, self.splits)

    def stored_numbers(self, numbers: Array) -> Array:
        """See `StoredOrder`."""
        return together(numbers, self.splits).T


@dataclass(frozen=True)
class ZeroPointTensor(ReadByPacking):
    """A weight with zero points.

    Args:
        names, sources: of codes, scales and zero points.
        group: inputs with one scale.
    """

    names: tuple[str, str, str]
    sources: tuple[Tensor, Tensor, Tensor]
    order: StoredOrder
    group: int
    marks: ClassVar[tuple[str, ...]] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """Scales and zero points are written together with the codes."""
        return self.names[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of these."""
        return self.sources[1].nbytes + self.sources[2].nbytes

    @property
    def packing(self) -> ZeroPointRows:
        """The reader and writer of rows."""
        return ZeroPointRows(self)


class ZeroPointRows:
    """The rows of such a weight; all are written when the last is known."""

    unit = 1
    scattered = True

    def __init__(self, held: ZeroPointTensor) -> None:
        self._held = held

    @cached_property
    def _codes(self) -> Array:
        """The codes in the order of the model, as they are now."""
        import numpy as np

        return self._held.order.codes(np.frombuffer(self._held.sources[0].raw(), np.uint8)).copy()

    @cached_property
    def _numbers(self) -> list[Array]:
        """Scales and zero points as they are now, `(outputs, groups)`."""
        return [self._held.order.numbers(t.numpy()).copy() for t in self._held.sources[1:]]

    def place(self, start: int) -> int:
        """Return 0: the rows do not lie in this order."""
        return 0

    def raw(self, start: int, stop: int) -> Array:
        """Return codes of one byte each."""
        return self._codes[start:stop]

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of codes, with the scales that they have now."""
        import numpy as np

        scales, zeros = (
            one[start : start + len(raw)].astype(np.float32)[..., None] for one in self._numbers
        )
        codes = self._grouped(raw).astype(np.float32) - np.float32(self._held.order.middle)
        found: Array = codes * scales + zeros
        return found.reshape(len(raw), -1)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return codes after a change; scales and zero points are kept for `beside`.

        Each changed group keeps them, or gets those of its smallest and largest number, whichever is
        nearer.
        """
        import numpy as np

        moved = self._grouped(change).any(axis=2)
        if not moved.any():
            return raw
        new = self._grouped((weights + change).astype(np.float32, copy=False))[moved]
        mine = [one[start : start + len(raw)] for one in self._numbers]
        kept = [one[moved] for one in mine]
        low, high = new.min(axis=1), new.max(axis=1)
        kind = numpy_dtype(self._held.sources[1].dtype)
        step, middle = ((high - low) / _MOST).astype(kind), self._held.order.middle
        fresh = [step, (low + middle * step.astype(np.float32)).astype(kind)]
        codes, error = _coded(new, kept[0], kept[1], middle, draw)
        others, other = _coded(new, fresh[0], fresh[1], middle, draw)
        better = other < error
        grouped = self._grouped(raw).copy()
        grouped[moved] = np.where(better[:, None], others, codes)
        for one, before, after in zip(mine, kept, fresh, strict=True):
            one[moved] = np.where(better, after, before)
        found = grouped.reshape(raw.shape)
        self._codes[start : start + len(raw)] = found
        return found

    def _grouped(self, values: Array) -> Array:
        return values.reshape(len(values), -1, self._held.group)

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of codes, scales and zero points."""
        order = self._held.order
        arrays = [order.stored(self._codes), *map(order.stored_numbers, self._numbers)]
        return {name: array.tobytes() for name, array in zip(self._held.names, arrays, strict=True)}

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        import numpy as np

        scales = np.abs(self._numbers[0][start:stop].astype(np.float32))
        return np.repeat(scales, self._held.group, axis=1)


def _coded(
    values: Array, scales: Array, zeros: Array, middle: int, draw: Any
) -> tuple[Array, Array]:
    """Return the codes of groups at some scales and zero points, and their squared errors.

    Errors of random rounding are those of what lies outside the range, so that they choose nothing.
    """
    import numpy as np

    step, zero = (one.astype(np.float32)[:, None] for one in (scales, zeros))
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(step == 0, np.float32(0), (values - zero) / step)
    inside = np.clip(exact + middle, 0, _MOST)
    codes = np.rint(inside) if draw is None else np.floor(inside + draw(inside.shape))
    codes = np.clip(codes, 0, _MOST)
    back = ((codes if draw is None else inside) - middle) * step + zero
    return codes.astype(np.uint8), ((back - values) ** 2).sum(axis=1)

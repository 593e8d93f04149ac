"""Biases that nunchaku stores in another order than the model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from loramerge.checkpoint.branch import BranchedLayer
from loramerge.checkpoint.fragments import stored_vector, vector_of
from loramerge.checkpoint.packing import ReadByPacking
from loramerge.checkpoint.storage import Array
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import Tensor

__all__ = ["ReorderedTensor", "apart", "together"]


def apart(values: Array, splits: int) -> Array:
    """Return outputs that alternate among modulations with those of each together."""
    return values.reshape(-1, splits, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def together(values: Array, splits: int) -> Array:
    """Return outputs so that they alternate: the inverse of `apart`."""
    return values.reshape(splits, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


@dataclass(frozen=True)
class ReorderedTensor(ReadByPacking):
    """A bias in the order of the model.

    Args:
        name: of its tensor; stored: the tensor.
        splits: number of modulations among which it alternates; some then have one added.
        added: biases of other layers that are added to the same outputs.
        moved: layers whose inputs are shifted, for which the stored biases make up.
        tiled: whether it is stored in the order of tensor cores.
    """

    name: str
    stored: Tensor
    splits: int = 1
    added: tuple[Tensor, ...] = ()
    moved: tuple[BranchedLayer, ...] = ()
    tiled: bool = False
    beside: ClassVar[tuple[str, ...]] = ()
    nbytes: ClassVar[int] = 0
    marks: ClassVar[tuple[str, ...]] = ()

    @property
    def packing(self) -> ReorderedRows:
        """The reader and writer of its numbers."""
        return ReorderedRows(self)

    def ordered(self, stored: Array) -> Array:
        """Return stored numbers in the order of the model."""
        return vector_of(stored) if self.tiled else apart(stored.reshape(-1), self.splits)

    def as_stored(self, values: Array) -> Array:
        """Return numbers in the order in which they are stored."""
        return stored_vector(values) if self.tiled else together(values, self.splits)


class ReorderedRows:
    """The numbers of a bias, each a row of one column; all are written when the last is known."""

    unit = 1
    scattered = True

    def __init__(self, held: ReorderedTensor) -> None:
        self._held = held

    @cached_property
    def _now(self) -> Array:
        """The stored numbers in the order of the model, as they are now."""
        return self._held.ordered(self._held.stored.numpy()).copy()

    @cached_property
    def _more(self) -> Array:
        """The difference of the model's numbers from those that are stored."""
        import numpy as np

        held, found = self._held, np.zeros(len(self._now), np.float32)
        for tensor in held.added:
            found += held.ordered(tensor.numpy()).astype(np.float32)
        for layer in held.moved:
            found += layer.shift()
        if held.splits > 1:
            found.reshape(held.splits, -1)[[1, -2]] -= 1  # one row where there are three
        return found

    def place(self, start: int) -> int:
        """Return 0: the numbers do not lie in this order."""
        return 0

    def raw(self, start: int, stop: int) -> Array:
        """Return stored numbers, in the order of the model."""
        return self._now[start:stop]

    def unpack(self, raw: Array, start: int) -> Array:
        """Return stored numbers as a float32 column."""
        import numpy as np

        more = self._more[start : start + len(raw)]
        return (raw.astype(np.float32) + more).reshape(-1, 1)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return stored numbers after a change."""
        import numpy as np

        moved = change.reshape(-1) != 0
        exact = raw.astype(np.float32) + change.reshape(-1)
        found = np.where(moved, exact.astype(numpy_dtype(self._held.stored.dtype)), raw)
        self._now[start : start + len(raw)] = found
        return found

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of all numbers."""
        return {self._held.name: self._held.as_stored(self._now).tobytes()}

    def weights(self, start: int, stop: int) -> Array:
        """Return any numbers as a float32 column."""
        return self.unpack(self.raw(start, stop), start)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each."""
        import numpy as np

        numbers = np.abs(self.raw(start, stop).astype(np.float32))
        bits = 10 if self._held.stored.dtype == "F16" else 7
        power = np.floor(np.log2(np.maximum(numbers, np.float32(2.0**-14))))
        found: Array = np.exp2(power - bits).astype(np.float32)
        return found.reshape(-1, 1)

"""Tensors made of parts of others, byte for byte, computed each time their data is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loramerge.files.header import nbytes
from loramerge.files.tensors import RawTensor, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Derived", "columns_of", "rows_of", "same_bytes", "stacked", "transposed", "unread_like"]


class Derived(Tensor):
    """A tensor whose values a function gives; they are not kept.

    Args:
        make: returns an array of the dtype and shape that are stated.
    """

    __slots__ = ("_make", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], make: Callable[[], Array]) -> None:
        self._make = make
        self.dtype = dtype
        self.shape = shape

    def raw(self) -> memoryview:
        import numpy as np

        return np.ascontiguousarray(self.numpy()).reshape(-1).view(np.uint8).data

    def numpy(self) -> Array:
        return self._make().reshape(self.shape)


class _Rows(Tensor):
    """See `rows_of`."""

    __slots__ = ("_ranges", "_whole", "dtype", "shape")

    def __init__(self, whole: Tensor, ranges: Sequence[tuple[int, int]]) -> None:
        self._whole, self._ranges = whole, tuple(ranges)
        self.dtype = whole.dtype
        self.shape = (sum(stop - start for start, stop in ranges), *whole.shape[1:])

    def raw(self) -> bytes:
        whole = memoryview(self._whole.raw())
        row = nbytes(self.dtype, (1, *self._whole.shape[1:]))
        return b"".join(whole[start * row : stop * row] for start, stop in self._ranges)

    def numpy(self) -> Array:
        import numpy as np

        whole = self._whole.numpy().reshape(self._whole.shape[0], -1)
        parts = [whole[start:stop] for start, stop in self._ranges]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(self.shape)


def rows_of(tensor: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Return row ranges (first, last plus one) of a tensor, one after the other."""
    view = _Rows(tensor, ranges)
    return unread_like(view.dtype, view.shape) if tensor.unread else view


def columns_of(tensor: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Return ranges of the second axis of a tensor, one after the other."""
    width = sum(stop - start for start, stop in ranges)
    shape = (tensor.shape[0], width, *tensor.shape[2:])

    def make() -> Array:
        import numpy as np

        whole = tensor.numpy()
        return np.concatenate([whole[:, start:stop] for start, stop in ranges], axis=1)

    return unread_like(tensor.dtype, shape) if tensor.unread else Derived(tensor.dtype, shape, make)


def transposed(tensor: Tensor) -> Tensor:
    """Return a matrix with its axes exchanged."""
    shape = tensor.shape[::-1]
    if tensor.unread:
        return unread_like(tensor.dtype, shape)
    return Derived(tensor.dtype, shape, lambda: tensor.numpy().T)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one type one above the other."""
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])

    def make() -> Array:
        import numpy as np

        return np.concatenate([tensor.numpy() for tensor in tensors])

    return Derived(first.dtype, shape, make)


class _Unread(RawTensor):
    """A placeholder for a tensor: only type and shape."""

    unread = True


def unread_like(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a stand-in of a dtype and shape, without values."""
    return _Unread(b"", dtype, shape)


def same_bytes(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same values in the same type and shape."""
    if first is second:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape) or first.unread or second.unread:
        return False
    return math.prod(first.shape) == 0 or bytes(first.raw()) == bytes(second.raw())

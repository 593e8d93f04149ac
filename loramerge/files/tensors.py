"""Handles on tensors: stored in a file and read when asked, or computed and in memory.

Everything above this layer works with `Tensor`; only `numpy()` touches data and imports numpy.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from loramerge.files.dtypes import dtype_name, is_plain, numpy_dtype, scalar
from loramerge.files.header import TensorInfo, nbytes
from loramerge.files.positioned import PositionedFile

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ArrayTensor",
    "ComputedTensor",
    "RawTensor",
    "StoredTensor",
    "Tensor",
    "same_bytes",
    "scalars",
    "stream",
]


class Tensor(ABC):
    """A tensor with a dtype (safetensors name) and a shape, whose data is read on demand."""

    __slots__ = ()

    dtype: str
    shape: tuple[int, ...]
    unread: ClassVar[bool] = False  # true for stand-ins, of which only type and shape matter

    @abstractmethod
    def raw(self) -> bytes | memoryview:
        """Return the stored bytes, little endian and C-contiguous."""

    @abstractmethod
    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values as an array of the stored dtype (ml_dtypes for bfloat16, float8)."""

    @property
    def nbytes(self) -> int:
        """Size of the stored bytes."""
        return nbytes(self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> Tensor:
        """Return a handle on the same data with another shape of as many elements."""
        other: Tensor = copy(self)
        object.__setattr__(other, "shape", shape)
        return other

    def item(self) -> float:
        """Return the value of a tensor of one element, without importing numpy."""
        return scalar(bytes(self.raw()), self.dtype)


class Reopening(Protocol):
    """A file that can be closed meanwhile; see `reader.TensorFile`."""

    def handle(self) -> PositionedFile:
        """Return the open file, opening it again if it was closed."""


class StoredTensor(Tensor):
    """A tensor in a safetensors file."""

    __slots__ = ("_file", "dtype", "info", "shape")

    def __init__(self, file: Reopening, info: TensorInfo) -> None:
        self._file = file
        self.info = info
        self.dtype = info.dtype
        self.shape = info.shape

    @property
    def source(self) -> PositionedFile:
        """The open file the tensor lies in."""
        return self._file.handle()

    def seen_as(self, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return the same bytes as a tensor of another type and shape."""
        return StoredTensor(self._file, self.info._replace(dtype=dtype, shape=shape))

    def raw(self) -> bytes:
        return self.source.read(self.info.start, self.info.stop - self.info.start)

    def numpy(self) -> np.ndarray[Any, Any]:
        import numpy as np

        array = np.empty(self.shape, numpy_dtype(self.dtype))
        if array.size:
            self.source.read_into(self.info.start, array.reshape(-1).view(np.uint8))
        return array


class ArrayTensor(Tensor):
    """A tensor in memory."""

    __slots__ = ("_array", "dtype", "shape")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        import numpy as np

        native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        self._array = np.ascontiguousarray(native).reshape(array.shape)
        self.dtype = dtype_name(self._array.dtype)
        self.shape = tuple(self._array.shape)

    def raw(self) -> memoryview:
        import numpy as np

        return self._array.reshape(-1).view(np.uint8).data

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._array.reshape(self.shape)


class ComputedTensor(Tensor):
    """A tensor whose values are computed each time they are asked for, and never kept."""

    __slots__ = ("_make", "dtype", "shape")

    def __init__(
        self, dtype: str, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]]
    ) -> None:
        self._make = make
        self.dtype = dtype
        self.shape = shape

    def raw(self) -> bytes:
        return self.numpy().tobytes()

    def numpy(self) -> np.ndarray[Any, Any]:
        return self._make().reshape(self.shape)


class RawTensor(Tensor):
    """A small tensor given by its bytes, e.g. an alpha; needs no numpy."""

    __slots__ = ("_raw", "dtype", "shape")

    def __init__(self, raw: bytes, dtype: str, shape: tuple[int, ...]) -> None:
        self._raw = raw
        self.dtype = dtype
        self.shape = shape

    def raw(self) -> bytes:
        return self._raw

    def numpy(self) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.frombuffer(self._raw, numpy_dtype(self.dtype)).reshape(self.shape)


def scalars(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the values of those tensors that have one element and lie in a file, without numpy.

    Those of one file are read together: of a network there are hundreds. Others are left to `item`.
    """
    by_file: dict[PositionedFile, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, StoredTensor) and tensor.size == 1 and is_plain(tensor.dtype):
            by_file.setdefault(tensor.source, {})[name] = tensor.info
    found: dict[str, float] = {}
    known: dict[tuple[bytes, str], float] = {}  # most have one value
    for file, infos in by_file.items():
        parts = file.read_each((info.start, info.stop - info.start) for info in infos.values())
        for (name, info), raw in zip(infos.items(), parts, strict=True):
            value = known.get((raw, info.dtype))
            if value is None:
                value = known[raw, info.dtype] = scalar(raw, info.dtype)
            found[name] = value
    return found


_BLOCK = 1 << 18  # bytes compared at a time: they stay in the processor's cache
_PIECE = 1 << 21  # bytes streamed at a time


class _Blocks(threading.local):
    """Two buffers of one thread, kept from tensor to tensor."""

    def __init__(self) -> None:
        self.pair = bytearray(_BLOCK), bytearray(_BLOCK)


_blocks = _Blocks()


def stream(tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of tensors one after another; each piece is good until the next is asked for.

    What lies together in a file is read together, in few large pieces: a thread that only reads and
    hashes then seldom has to wait for its turn at the interpreter.
    """
    buffer: bytearray | None = None
    for source, start, stop in _runs(tensors):
        if isinstance(source, Tensor):
            yield source.raw()
            continue
        buffer = buffer or bytearray(_PIECE)
        for position in range(start, stop, _PIECE):
            part = memoryview(buffer)[: min(_PIECE, stop - position)]
            source.read_into(position, part)
            yield part


def _runs(tensors: Iterable[Tensor]) -> Iterator[tuple[PositionedFile | Tensor, int, int]]:
    """Yield (file, start, stop) of adjacent tensors in a file, and tensors that are in none."""
    run: tuple[PositionedFile, int, int] | None = None
    for tensor in tensors:
        if not isinstance(tensor, StoredTensor):
            if run is not None:
                yield run
            run = None
            yield tensor, 0, 0
        elif run is not None and run[0] is tensor.source and run[2] == tensor.info.start:
            run = (run[0], run[1], tensor.info.stop)
        else:
            if run is not None:
                yield run
            run = (tensor.source, tensor.info.start, tensor.info.stop)
    if run is not None:
        yield run


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same type, number of elements, and bytes.

    Shapes may differ by axes of length 1; stored tensors are compared in blocks.
    """
    if a.dtype != b.dtype or a.size != b.size:
        return False
    if a is b:
        return True
    if not (isinstance(a, StoredTensor) and isinstance(b, StoredTensor)):
        return bytes(a.raw()) == bytes(b.raw())
    ours, theirs = _blocks.pair
    one, other, size = a.source, b.source, a.nbytes
    for done in range(0, size, _BLOCK):
        count = min(_BLOCK, size - done)
        one.read_into(a.info.start + done, memoryview(ours)[:count])
        other.read_into(b.info.start + done, memoryview(theirs)[:count])
        if ours[:count] != theirs[:count] if count < _BLOCK else ours != theirs:
            return False
    return True

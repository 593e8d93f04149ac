"""Room for computed tensors until they are written: in memory, and beyond that in a file without a name.

Where tensors lie in a file is known only when all ranks are, and all of them may be larger than memory.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.errors import FileError
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.forms import PARTIAL
from loramerge.files.positioned import PositionedFile
from loramerge.files.temporary import beside, discard
from loramerge.files.tensors import ArrayTensor, Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Keep", "Spool", "SpooledTensor", "in_memory", "spool_for"]

Keep = Callable[[Tensor], Tensor]  # returns the same tensor, held somewhere else

_ROOM = 64 << 20  # bytes that stay in memory


def in_memory(tensor: Tensor) -> Tensor:
    """Return the tensor."""
    return tensor


def spool_for(output: Path | None) -> Keep:
    """Return a function that holds tensors until they are written to a path; None is memory."""
    return in_memory if output is None else Spool(output, _ROOM).keep


class SpooledTensor(Tensor):
    """A computed tensor that lies in a spool."""

    __slots__ = ("_file", "_start", "dtype", "shape")

    def __init__(self, file: _Nameless, start: int, dtype: str, shape: tuple[int, ...]) -> None:
        self._file = file
        self._start = start
        self.dtype = dtype
        self.shape = shape

    def raw(self) -> memoryview:
        import numpy as np

        return self.numpy().reshape(-1).view(np.uint8).data

    def numpy(self) -> np.ndarray[Any, Any]:
        import numpy as np

        array = np.empty(self.shape, numpy_dtype(self.dtype))
        self._file.file.read_into(self._start, array.reshape(-1).view(np.uint8))
        return array


class Spool:
    """Holds tensors for an output; not safe to use from several threads.

    The file lies beside the output and is gone with its last tensor. Where it cannot be written, tensors
    stay in memory.

    Args:
        room: bytes that stay in memory.
    """

    def __init__(self, output: Path, room: int) -> None:
        self._output, self._left = output, room
        self._file: _Nameless | None = None
        self._end = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a tensor with the same values; one that is not computed, or empty, as it is."""
        if not isinstance(tensor, ArrayTensor) or not tensor.nbytes:
            return tensor
        if tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            return tensor
        try:
            if self._file is None:
                self._file = _Nameless(self._output)
            self._file.file.write(self._end, tensor.raw())
        except (FileError, OSError):
            return tensor
        start, self._end = self._end, self._end + tensor.nbytes
        return SpooledTensor(self._file, start, tensor.dtype, tensor.shape)


class _Nameless:
    """A file beside an output that nobody else sees, as far as the system can."""

    def __init__(self, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        path = beside(output, PARTIAL)
        self.file = PositionedFile(path, "x")
        if os.name == "posix":
            discard(path)
        weakref.finalize(self, _close, self.file, path)


def _close(file: PositionedFile, path: Path) -> None:
    file.close()
    discard(path)

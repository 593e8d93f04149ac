"""The place where a parameter is stored: a tensor of a file, and the rows of it."""

from __future__ import annotations

from typing import NamedTuple

from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.files import CheckpointFile
from loramerge.checkpoint.storage import HeldTensor
from loramerge.checkpoint.storages import held
from loramerge.errors import FormatError
from loramerge.files.tensors import Tensor

__all__ = ["Place"]


class Place(NamedTuple):
    """The place of a parameter in a tensor of a file; see `families.Slot`.

    Args:
        heads: number of heads of which the two halves of the rows alternate in the tensor; 0 for none.
    """

    file: CheckpointFile
    tensor: Tensor
    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    span: int = 1
    swapped: bool = False
    heads: int = 0

    @property
    def rows(self) -> tuple[int, int]:
        """First and last-plus-one row of the stored tensor."""
        height = self.tensor.shape[0] // self.parts
        return self.part * height, (self.part + self.span) * height

    @property
    def pieces(self) -> tuple[tuple[int, int, int], ...]:
        """Ranges of stored rows as (first, last plus one, row of the parameter it begins at).

        Rows of heads whose halves alternate count as they are stored.
        """
        start, stop = self.rows
        if not self.swapped:
            return ((start, stop, 0),)
        half = (stop - start) // 2
        return ((start, start + half, half), (start + half, stop, 0))

    @property
    def head(self) -> int:
        """Rows of a head, where the halves of heads alternate."""
        start, stop = self.rows
        return (stop - start) // self.heads

    def whole_heads(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of rows, of the parameter and of the tensor, of all heads among some rows."""
        return start - start % self.head, stop + -stop % self.head

    @property
    def held(self) -> HeldTensor | None:
        """The tensor in its storage, None if the storage is not known.

        Raises:
            FormatError: if it is known, but tensors beside it are not understood.
        """
        if isinstance(self.tensor, Composed):
            return self.tensor.held
        return held(self.file.open()[0], self.name)

    def require_held(self) -> HeldTensor:
        """Return the tensor in its storage.

        Raises:
            FormatError: if the storage is not known; see `held`.
        """
        found = self.held
        if found is None:
            raise FormatError(
                "the weights are stored in an unknown way",
                file=self.file.path,
                module=self.name,
                found=self.tensor.dtype,
            )
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter, as `(out, in, …)`."""
        if self.parts == 1 and not self.transposed:
            return self.tensor.shape
        start, stop = self.rows
        stored = (stop - start, *self.tensor.shape[1:])
        return tuple(reversed(stored)) if self.transposed else stored

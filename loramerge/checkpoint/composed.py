"""Weights that a storage makes of tensors with other names, or of several tensors.

`CheckpointFile.weights` lists them by the names of the model; `Place` finds their storage through them.
"""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.checkpoint.storage import Array, HeldTensor
from loramerge.files.tensors import Tensor

__all__ = ["Composed", "Window"]


class Composed(Tensor):
    """A weight with its storage.

    Args:
        dtype, shape: of the weight.
        home: name of the stored tensor whose task in a bake writes the weight.
        held: the weight in its storage.
        sources: the tensors that hold it.
        written: type in which a change of it is written, its own if that is empty.
    """

    __slots__ = ("dtype", "held", "home", "shape", "sources", "written")

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        home: str,
        held: HeldTensor,
        sources: Sequence[Tensor],
        written: str = "",
    ) -> None:
        self.dtype, self.shape, self.home = dtype, shape, home
        self.held, self.sources, self.written = held, tuple(sources), written or dtype

    def raw(self) -> bytes:
        """Return the stored bytes of all its tensors, which two equal weights share."""
        return b"".join(bytes(tensor.raw()) for tensor in self.sources)

    def numpy(self) -> Array:
        """Return the weight in float32."""
        packing = self.held.packing
        if packing is None:
            return self.sources[0].numpy().reshape(self.shape)
        return packing.weights(0, self.shape[0]).reshape(self.shape)


class Window(Tensor):
    """Rows of a composed weight that are a weight of the model.

    Args:
        whole: whose rows are cut in `parts` equal parts; part: which of them.
    """

    __slots__ = ("dtype", "part", "parts", "shape", "whole")

    def __init__(self, whole: Composed, part: int, parts: int) -> None:
        self.whole, self.part, self.parts = whole, part, parts
        self.dtype, self.shape = whole.dtype, (whole.shape[0] // parts, *whole.shape[1:])

    def raw(self) -> bytes:
        """Return the bytes of the whole weight; see `Composed.raw`."""
        return self.whole.raw()

    def numpy(self) -> Array:
        """Return the rows in float32."""
        height = self.shape[0]
        return self.whole.numpy()[self.part * height : (self.part + 1) * height]

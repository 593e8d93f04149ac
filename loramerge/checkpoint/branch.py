"""Quantised weights with a low-rank branch beside them, as SVDQuant makes them.

    W = residual / smoothing of the inputs + up · down

An adapter joins the branch: its factors are appended, and the residual keeps its bytes.

Source: nunchaku, `SVDQW4A4Linear` and its kernels: the branch is given the inputs before smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from loramerge.checkpoint.fragments import (
    FRAGMENT,
    TILE,
    codes_of,
    down_of,
    fragments_of_down,
    fragments_of_up,
    micro_scales_of,
    scales_of,
    up_of,
    vector_of,
)
from loramerge.checkpoint.packing import ReadByPacking
from loramerge.checkpoint.storage import Array
from loramerge.errors import FormatError
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["BranchTensor", "BranchedLayer", "Piece"]

_SHIFT = 0.171875  # the least value of GELU
_FP4 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
_INT4 = (0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)


@dataclass(frozen=True)
class BranchedLayer:
    """One quantised layer of a file.

    Args:
        stem: the beginning of the names of its tensors.
        codes: `(outputs, inputs / 2)` bytes; scales: of groups of inputs.
        up, down: names of the factors; `factors` has their tensors.
        smooth: what inputs are divided by before they are quantised, None for nothing.
        whole: number that all scales are multiplied by; outputs: a number for each output.
        level: whether all layers of the file must have factors of one rank.
        pair: stem of the layer whose factors must have the same rank, '' for none.
        calibrated: the smoothing that the codes were made for, None where that is not said.
    """

    stem: str
    codes: StoredTensor
    scales: StoredTensor
    up: str
    down: str
    factors: tuple[Tensor, Tensor]
    smooth: Tensor | None = None
    whole: Tensor | None = None
    outputs: Tensor | None = None
    level: bool = False
    pair: str = ""
    calibrated: Tensor | None = None
    step: ClassVar[int] = FRAGMENT

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def sources(self) -> list[Tensor]:
        """The tensors that hold the weight."""
        beside = (self.smooth, self.whole, self.outputs, self.calibrated)
        return [self.codes, self.scales, *self.factors, *(one for one in beside if one is not None)]

    @property
    def rank(self) -> int:
        """Rank of the stored factors, padding included."""
        return self.factors[0].shape[1]

    @property
    def floating(self) -> bool:
        """True for codes of float4 (nvfp4), False for whole numbers."""
        return self.scales.dtype == "F8_E4M3"

    @property
    def group(self) -> int:
        """Inputs with one scale."""
        return self.shape[1] // self.scales.shape[0]

    def residual(self, start: int, stop: int) -> tuple[Array, Array]:
        """Return the codes' numbers and their scales of rows that are whole tiles, in float32.

        Returns:
            `(rows, groups, inputs of a group)` and `(rows, groups, 1)`.
        """
        import numpy as np

        columns, groups = self.shape[1], self.shape[1] // self.group
        raw = _rows(self.codes, start, stop, columns // 2)
        table = np.array(_FP4 if self.floating else _INT4, np.float32)
        numbers = table[codes_of(raw.view(np.uint8), columns)].reshape(stop - start, groups, -1)
        stored = _rows(self.scales, start, stop, groups)
        apart = micro_scales_of if self.floating else scales_of
        scales = apart(stored, groups).astype(np.float32)
        if self.whole is not None:
            scales *= np.float32(self.whole.numpy().astype(np.float32).reshape(-1)[0])
        if self.outputs is not None:
            factor = vector_of(self.outputs.numpy()).astype(np.float32)
            scales *= factor[start:stop, None]
        return numbers, scales[..., None]

    def smoothing(self) -> Array | float:
        """Return what the inputs are divided by, in float32."""
        import numpy as np

        if self.smooth is None:
            return 1.0
        found: Array = vector_of(self.smooth.numpy()).astype(np.float32)
        return found

    def shift(self) -> Array:
        """Return what a shift of all inputs by the kernel's constant adds to the outputs."""
        import numpy as np

        found = []
        for start in range(0, self.shape[0], TILE):
            numbers, scales = self.residual(start, start + TILE)
            found.append(((numbers * scales).reshape(TILE, -1) / self.smoothing()).sum(axis=1))
        return np.float32(_SHIFT) * np.concatenate(found)

    @property
    def folded(self) -> bool:
        """True if the smoothing of the inputs is part of the layer that makes them."""
        import numpy as np

        if self.smooth is None or self.calibrated is None or not self.calibrated.size:
            return False
        given = self.calibrated.numpy().astype(np.float32)
        return bool((self.smooth.numpy() == 1).all() and not (given == 1).all())

    def both(self, dtype: Any) -> tuple[Array, Array]:
        """Return the factors `(outputs, rank)` and `(rank, inputs)`."""
        up, down = (tensor.numpy() for tensor in self.factors)
        return up_of(up, self.rank).astype(dtype), down_of(down, self.rank).astype(dtype)

    def stored(self, up: Array, down: Array) -> tuple[Array, Array]:
        """Return factors of the stored type as they are stored; the rank is a multiple of `step`."""
        return fragments_of_up(up), fragments_of_down(down)


class Piece(NamedTuple):
    """Columns of a weight, and the layer that holds them."""

    layer: BranchedLayer
    start: int
    stop: int


@dataclass(frozen=True)
class BranchTensor(ReadByPacking):
    """A weight whose columns are those of one or more layers with a branch.

    Args:
        after: the layers whose inputs are mixtures of its outputs.
    """

    pieces: tuple[Piece, ...]
    after: tuple[BranchedLayer, ...] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    nbytes: ClassVar[int] = 0
    marks: ClassVar[tuple[str, ...]] = ()

    @property
    def packing(self) -> BranchRows:
        """The reader of rows."""
        self.require_apart()
        return BranchRows(self.pieces)

    def require_apart(self) -> None:
        """Refuse a weight with the smoothing of another layer's inputs, or whose own lies in another.

        Raises:
            FormatError: naming the layer.
        """
        for layer in (*(piece.layer for piece in self.pieces), *self.after):
            if layer.folded:
                raise FormatError(
                    "the smoothing of this layer's inputs is part of the layer before it, so neither "
                    "has the model's weights",
                    module=layer.stem,
                    hint="give the checkpoint that it was made from",
                )


class BranchRows:
    """The rows of a weight with a branch; they are read, and never written."""

    unit = 1

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces

    @cached_property
    def _shared(self) -> list[tuple[Array, Array, Array | float]]:
        """The factors and the smoothing of every piece."""
        return [(*piece.layer.both("float32"), piece.layer.smoothing()) for piece in self._pieces]

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows."""
        import numpy as np

        found = []
        for piece, (up, down, smooth) in zip(self._pieces, self._shared, strict=True):
            first, last = _tiles(start, stop)
            numbers, scales = piece.layer.residual(first, last)
            residual = (numbers * scales).reshape(last - first, -1)[start - first : stop - first]
            found.append(residual / smooth + up[start:stop] @ down)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""
        import numpy as np

        found = []
        for piece, (_, _, smooth) in zip(self._pieces, self._shared, strict=True):
            first, last = _tiles(start, stop)
            numbers, scales = piece.layer.residual(first, last)
            power = np.exp2(np.floor(np.log2(np.maximum(np.abs(numbers), 1))) - 1)
            spacing = power if piece.layer.floating else np.ones_like(numbers)
            steps = (spacing * scales).reshape(last - first, -1)[start - first : stop - first]
            found.append(np.abs(steps / smooth))
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def place(self, start: int) -> int:
        """Refuse, as all that would write."""
        raise _unwritten(self._pieces)

    def raw(self, start: int, stop: int) -> Array:
        """Refuse, as all that would write."""
        raise _unwritten(self._pieces)

    def unpack(self, raw: Array, start: int) -> Array:
        """Refuse, as all that would write."""
        raise _unwritten(self._pieces)

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Refuse, as all that would write."""
        raise _unwritten(self._pieces)

    def beside(self) -> Mapping[str, bytes]:
        """Return nothing."""
        return {}


def _unwritten(pieces: Sequence[Piece]) -> FormatError:
    return FormatError(
        "whole weights are not written in SVDQuant: only changes of low rank join its branch",
        module=pieces[0].layer.stem,
    )


def _tiles(start: int, stop: int) -> tuple[int, int]:
    """Return the range of whole tiles that holds some rows."""
    return start - start % TILE, stop + -stop % TILE


def _rows(tensor: StoredTensor, start: int, stop: int, columns: int) -> Array:
    """Return the stored numbers of rows that are whole tiles."""
    import numpy as np

    dtype = numpy_dtype(tensor.dtype)
    found = np.empty((stop - start) * columns, dtype)
    offset = tensor.info.start + start * columns * dtype.itemsize
    tensor.source.read_into(offset, found.view(np.uint8))
    return found

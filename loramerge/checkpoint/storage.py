"""The interface of a storage: the form in which a checkpoint stores the numbers of a weight.

A storage recognises the weights it holds. What it finds, a `HeldTensor`, turns stored rows into weights,
and gives the `Codec` by which a bake turns changed weights back into stored rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from loramerge.files.tensors import Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = [
    "Codec", "Encoding", "HeldTensor", "Naming", "Packing", "Reshaping", "Storage", "Writer", "Writing",
]  # fmt: skip


class Storage(Protocol):
    """A form of stored weights. Its file defines it as `STORAGE`."""

    @property
    def name(self) -> str:
        """A short name, unique among storages."""

    @property
    def order(self) -> int:
        """Storages with lower numbers are tried first."""

    def recognise(self, tensors: Mapping[str, Tensor], name: str) -> HeldTensor | None:
        """Return a weight in this storage, None if it is stored in another way.

        Args:
            tensors: of the file.

        Raises:
            FormatError: if it is of this sort, but cannot be read.
        """

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether a file holds weights of this sort, whose type cannot be changed."""

    def partners(self, tensor: Tensor, name: str) -> tuple[str, ...]:
        """Return the possible names of tensors that belong to a weight and must be in its file."""


@runtime_checkable
class Reshaping(Protocol):
    """A storage whose tensors do not have the shapes of the weights."""

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        """See `Storage.fixes_types`."""

    def weight(self, tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
        """Return a tensor with the type and shape of the weight it holds; None for other tensors."""


@runtime_checkable
class Naming(Protocol):
    """A storage whose weights have other names than the tensors that hold them."""

    def fixes_types(self, tensors: Mapping[str, Tensor]) -> bool:
        """See `Storage.fixes_types`."""

    def weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights and biases by the names of the model, each `composed.Composed` or rows of one.

        Raises:
            FormatError: if they cannot be read.
        """


@runtime_checkable
class Writing(Protocol):
    """A storage in which weights of other storages can be stored anew."""

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """The forms it can write."""


class Encoding(Protocol):
    """A form in which a weight can be stored anew, from its numbers alone."""

    @property
    def name(self) -> str:
        """The word that users type."""

    @property
    def suffix(self) -> str:
        """The ending of the files that can hold it, `''` if any can."""

    @property
    def dtype(self) -> str | None:
        """The type of plain floats, which need no writer; None for other forms."""

    @property
    def shares(self) -> bool:
        """True if the programs that read it expect single files in the names of the original model."""

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Return whether a weight of a shape can be stored so."""

    def entries(
        self, name: str, shape: tuple[int, ...]
    ) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Return (name, type, shape) of the tensors that store a weight, its own first."""

    def writer(self, name: str, shape: tuple[int, ...]) -> Writer:
        """Return the writer of one weight."""


class Writer(Protocol):
    """Writes the rows of one weight in order, `(rows, columns)`."""

    @property
    def unit(self) -> int:
        """Number of rows that can be written without their neighbours."""

    @property
    def looks(self) -> bool:
        """True if `look` must see all rows before the first is written."""

    def look(self, weights: Array) -> None:
        """Note what the scale of the whole weight depends on."""

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which rows begin."""

    def store(self, weights: Array, start: int, draw: Any) -> tuple[Array, Array]:
        """Return the bytes of float32 rows that begin at row `start`, and the weights that they hold.

        Args:
            draw: see `Packing.pack`.
        """

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the other tensors, by name, after all rows."""


class HeldTensor(Protocol):
    """One stored weight."""

    @property
    def beside(self) -> tuple[str, ...]:
        """The names of the tensors that are written together with the weight."""

    @property
    def nbytes(self) -> int:
        """Bytes of these."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The names of further tensors that describe the weight, and mean nothing without it."""

    @property
    def packing(self) -> Packing | None:
        """The reader and writer of rows; None where each stored number is one weight, for which
        `dequantise` and `codec` serve."""

    def dequantise(self, rows: Array, start: int) -> Array:
        """Turn stored rows from row `start` on, already floats, into weights; may work in place."""

    def codec(self, dtype: str) -> Codec:
        """Return the codec that a bake computes and rounds with.

        Args:
            dtype: safetensors name of the type that is written.
        """


class Packing(Protocol):
    """The conversion between the weights of one tensor and packed rows.

    The rows of a bake begin at multiples of `unit`, in order; the last ones may be fewer. Where an
    attribute `scattered` is true, they do not lie in this order, and `beside` returns them all. A method
    `repack`, if there is one, takes what `pack` takes, and returns what `pack` and then `unpack` return.
    """

    @property
    def unit(self) -> int:
        """Number of rows that can be written without their neighbours."""

    def place(self, start: int) -> int:
        """Return the byte, from the beginning of the tensor, at which rows begin."""

    def raw(self, start: int, stop: int) -> Array:
        """Return rows as they are stored."""

    def unpack(self, raw: Array, start: int) -> Array:
        """Return the float32 weights of stored rows that begin at row `start`, `(rows, columns)`."""

    def pack(self, raw: Array, weights: Array, change: Array, start: int, draw: Any) -> Array:
        """Return the stored rows of changed weights; what does not change keeps its bytes.

        Args:
            raw, weights: before, see `raw` and `unpack`.
            change: to be added, `(rows, columns)`.
            draw: function of a shape that returns numbers of [0, 1) to round stochastically; None
                rounds as the format does.
        """

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the tensors that are written with the weight, by name, after all rows."""

    def weights(self, start: int, stop: int) -> Array:
        """Return the float32 weights of any rows, `(rows, columns)`."""

    def steps(self, start: int, stop: int) -> Array:
        """Return the distance between neighbouring numbers around each weight of any rows."""


class Codec(Protocol):
    """The conversion between the weights of one tensor and their stored form.

    Rows pass twice if `overflowed` says so after the first time.
    """

    @property
    def plain(self) -> bool:
        """True if the stored values are the weights."""

    @property
    def changed(self) -> bool:
        """True if the tensors beside the weight have changed."""

    def weights(self, stored: Array, start: int, out: Array) -> Array:
        """Return the weights of stored values that begin at row `start`, computed into `out`."""

    def add(self, stored: Array, asked: Array, start: int, out: Array) -> None:
        """Compute the values to be rounded and stored into `out`.

        Args:
            stored: as floats.
            asked: the change of the weights.
        """

    def fits(self, start: int, stop: int) -> bool:
        """Return whether the rows just added fit the type, or a second pass will make them."""

    def change(self, rounded: Array, weights: Array, start: int) -> None:
        """Turn rounded stored values (as floats, in place) into the change of the weights."""

    def overflowed(self) -> bool:
        """Return whether values were too large for the type; if so, a second pass will fit."""

    def beside(self) -> Mapping[str, bytes]:
        """Return the bytes of the tensors that are written with the weight, by name."""

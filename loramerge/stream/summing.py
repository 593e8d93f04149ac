"""Weighted sums of a parameter of several checkpoints, in pieces that stay in the processor's cache.

What `combining` and `blend` do for any operator, in the same order and with the same bytes. Sums are
limited by memory: here a piece goes through all steps before the next is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loramerge.checkpoint import Place
from loramerge.files.dtypes import PLAIN_FLOATS, numpy_dtype
from loramerge.files.halves import round_floats, widen
from loramerge.files.header import TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import StoredTensor
from loramerge.stream.row_reader import not_finite
from loramerge.stream.walk import Buffers, Nowhere

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["PieceSums", "Summing", "is_plain"]

PIECE = 1 << 17  # numbers of a piece


@dataclass
class PieceSums:
    """Inner products over all pieces, in double precision from piece to piece.

    Attributes:
        wanted, error, size: squared norms of the exact change, of what rounding does, and of the
            weights before.
        along: ⟨exact change, written change⟩.
        products: numbers of two terms → ⟨change, change⟩, only with a base.
    """

    wanted: float = 0.0
    along: float = 0.0
    error: float = 0.0
    size: float = 0.0
    products: dict[tuple[int, int], float] = field(default_factory=dict)


def is_plain(place: Place) -> bool:
    """Return whether a parameter lies in its tensor as numbers in the same order, without scales."""
    held = place.require_held()
    moved = place.transposed or place.heads or place.swapped
    scaled = held.packing is not None or held.beside
    return place.tensor.dtype in PLAIN_FLOATS and not moved and not scaled


@dataclass
class Summing:
    """A weighted sum of plainly stored parameters.

    Args:
        terms, coefficients: what is added up.
        before: what changes are measured from; the base, or often the first term.
        on_base: whether the sum is one of changes from `before`, and is added to that.
        target: where the result lies, in the tensor that `info` describes.
        kind: numpy type that is computed in.
    """

    terms: Sequence[Place]
    coefficients: Sequence[float]
    before: Place
    on_base: bool
    target: Place
    info: TensorInfo
    kind: str

    def write(self, out: PositionedFile | Nowhere, buffers: Buffers) -> PieceSums:
        """Write all of the result.

        Raises:
            NumericsError: if a term or what it is measured from holds NaN or infinity.
        """
        import numpy as np

        size = math.prod(self.target.shape)
        target = numpy_dtype(self.info.dtype)
        start = (
            self.info.start + self.target.rows[0] * (size // self.target.shape[0]) * target.itemsize
        )
        reference = self.reader(self.before, buffers)
        readers = [
            None if not self.on_base and term == self.before else self.reader(term, buffers)
            for term in self.terms
        ]
        several = self.on_base and len(readers) > 1
        sums = PieceSums()
        rows = buffers.get("pieces", self.kind, (3 + several * len(readers), PIECE))
        rounded = buffers.get("rounded", target, (1, PIECE))[0]
        for done in range(0, size, PIECE):
            count = min(PIECE, size - done)
            before, total, spare, *changes = (row[:count] for row in rows)
            reference(done, before)
            for number, (read, factor) in enumerate(zip(readers, self.coefficients, strict=True)):
                piece = spare if number else total
                if read is None:
                    np.multiply(before, factor, out=piece)
                elif not self.on_base:
                    read(done, piece, factor)
                else:
                    change = changes[number] if several else piece
                    read(done, change)
                    change -= before
                    np.multiply(change, factor, out=piece)
                if number:
                    total += spare
            if several:
                _multiply(changes, sums)
            if self.on_base:
                total += before
            stored = rounded[:count]
            round_floats(total, stored, spare)
            out.write(start + done * target.itemsize, stored.view(np.uint8))
            spare -= total
            total -= before
            wanted = float(np.dot(total, total))
            sums.wanted += wanted
            sums.along += wanted + float(np.dot(spare, total))
            sums.error += float(np.dot(spare, spare))
            sums.size += float(np.dot(before, before))
        return sums

    def reader(self, place: Place, buffers: Buffers) -> Callable[..., None]:
        """Return the function that fills an array with the numbers of a parameter, times a factor.

        It takes the number to begin at, the array and the factor.
        """
        import numpy as np

        tensor, kind = place.tensor, numpy_dtype(place.tensor.dtype)
        first = place.rows[0] * math.prod(tensor.shape[1:])
        buffer = buffers.get("read", kind, (1, PIECE))[0]

        def read(start: int, out: Array, factor: float = 1.0) -> None:
            if isinstance(tensor, StoredTensor):
                raw = buffer[: len(out)]
                offset = tensor.info.start + (first + start) * kind.itemsize
                tensor.source.read_into(offset, raw.view(np.uint8))
            else:
                raw = tensor.numpy().reshape(-1)[first + start : first + start + len(out)]
            if (
                not widen(raw, out, factor)
                and not np.isfinite(out.sum())
                and not np.isfinite(out).all()
            ):
                raise not_finite(place)

        return read


def _multiply(changes: Sequence[Array], sums: PieceSums) -> None:
    """Add the inner products of a piece of the changes."""
    import numpy as np

    for one, change in enumerate(changes):
        for other in range(one + 1):
            known = sums.products.get((other, one), 0.0)
            sums.products[other, one] = known + float(np.dot(change, changes[other]))

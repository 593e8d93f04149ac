"""The comparison of two places of checkpoints by their bytes, read in blocks."""

from __future__ import annotations

from typing import Any

from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.differences import equal_bytes, is_bare, same_bytes
from loramerge.stream.pairing import PlacePair
from loramerge.stream.reading import stored_rows
from loramerge.stream.walk import BLOCK_ELEMENTS

__all__ = ["same_raw", "same_stored"]

_READ = 1 << 22  # bytes of other tensors that are compared at a time


def same_stored(pair: PlacePair) -> bool:
    """Return whether two places hold the same bytes, scales beside them included."""
    import numpy as np

    one, other = (place.held for place in pair)
    if one is None or other is None:
        return same_raw(pair.tuned.tensor, pair.base.tensor)
    if type(one) is not type(other) or pair.tuned.tensor.dtype != pair.base.tensor.dtype:
        return False
    if is_bare(pair.tuned) and is_bare(pair.base):
        return same_bytes(pair)
    names = [(*held.beside, *held.marks) for held in (one, other)]
    files = [place.file.open()[0] for place in pair]
    if len(names[0]) != len(names[1]) or any(
        name not in tensors for those, tensors in zip(names, files, strict=True) for name in those
    ):
        return False
    flags = [(p.transposed, p.swapped, p.heads, p.rows, p.tensor.shape) for p in pair]
    if flags[0] != flags[1] or not all(
        same_raw(files[0][x], files[1][y]) for x, y in zip(*names, strict=True)
    ):
        return False
    if one.packing is None:
        readers: list[Any] = [stored_rows(place.tensor) for place in pair]
        unit = 1
    else:
        assert other.packing is not None
        readers, unit = [one.packing.raw, other.packing.raw], one.packing.unit
    first, last = pair.tuned.rows
    if first % unit:
        return False
    columns = max(1, pair.tuned.tensor.size // max(1, pair.tuned.tensor.shape[0]))
    step = max(unit, BLOCK_ELEMENTS // columns // unit * unit)
    for start in range(first, last, step):
        stop = min(start + step, last)
        if not equal_bytes(*(np.ascontiguousarray(read(start, stop)) for read in readers)):
            return False
    return True


def same_raw(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have one type and shape and the same bytes."""
    import numpy as np

    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not (isinstance(a, StoredTensor) and isinstance(b, StoredTensor)):
        return bytes(a.raw()) == bytes(b.raw())
    for start in range(0, a.nbytes, _READ):
        size = min(_READ, a.nbytes - start)
        pair = [np.empty(size, np.uint8) for _ in range(2)]
        for tensor, out in zip((a, b), pair, strict=True):
            tensor.source.read_into(tensor.info.start + start, out)
        if not equal_bytes(*pair):
            return False
    return True

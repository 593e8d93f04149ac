"""Compute one packed tensor of a checkpoint with its edits added, in blocks of rows; see `Packing`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from loramerge.checkpoint.storage import Packing
from loramerge.files.dtypes import DTYPES
from loramerge.files.header import TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.stream.changes import fill_change, row_adders
from loramerge.stream.edits import Edit
from loramerge.stream.finite import not_finite
from loramerge.stream.on_grid import ELEMENTS, moved_onto
from loramerge.stream.rounding import generator
from loramerge.stream.survival import Sums, Survival, measure
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers, Nowhere, TensorTask

__all__ = ["aimed_at", "compute_packed", "height_of", "require_finite_values", "write_rows"]


def compute_packed(
    name: str,
    beside: int,
    infos: Mapping[str, TensorInfo],
    edits: Sequence[Edit],
    seed: int | None,
    out: PositionedFile | Nowhere,
    onto: str = "",
) -> TensorTask[Survival]:
    """Return the task of one packed tensor that changes; see `compute_tensor`.

    Args:
        beside: bytes of the tensors that are written together with it.
        onto: see `moved_onto`; nothing rounds the sum as the storage does.
    """
    info, place = infos[name], edits[0].place
    rows, columns = place.tensor.shape[0], math.prod(place.tensor.shape[1:])

    def run(buffers: Buffers) -> list[Survival]:
        import numpy as np

        packing = place.require_held().packing  # made here: it keeps the scales of its tensor
        assert packing is not None
        adders = [row_adders(edit, "float32") for edit in edits]
        sums = [Sums() for _ in edits]
        draw = None
        if seed is not None:
            draw = partial(generator(seed, name).random, dtype=np.float32)
        height = height_of(packing, columns, ELEMENTS if onto else BLOCK_ELEMENTS)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            raw = packing.raw(start, stop)
            weights = packing.unpack(raw, start)
            asked = buffers.get("asked", "float32", (stop - start, columns))
            covered = fill_change(edits, adders, start, stop, weights, asked) or ()
            with np.errstate(over="ignore", invalid="ignore"):  # the result is looked at
                aimed = aimed_at(onto, packing, asked, start, stop)
                packed, written = _packed(packing, raw, weights, aimed, start, draw)
                for index, first, last in covered:
                    part = slice(first - start, last - start)
                    measure(sums[index], asked[part], written[part], weights[part])
            seen = sum(last - first for _, first, last in covered) == stop - start
            if not seen or not all(math.isfinite(s.error) for s in sums):
                written = packing.unpack(packed, start) - weights
                require_finite_values(name, info.dtype, written, weights, asked)
            write_rows(packing, info.start, start, packed, out)
        for other, data in packing.beside().items():
            out.write(infos[other].start, data)
        return [
            Survival(e.site.name, name, s.asked, s.along, s.error, s.base)
            for e, s in zip(edits, sums, strict=True)
        ]

    return TensorTask(info.stop - info.start + beside, run)


def _packed(
    packing: Packing, raw: Any, weights: Any, change: Any, start: int, draw: Any
) -> tuple[Any, Any]:
    """Return the packed rows after a change, see `Packing.pack`, and the change that they hold."""
    import numpy as np

    repack = getattr(
        packing, "repack", None
    )  # of those that know the weights before they are packed
    if repack is None:
        packed = packing.pack(raw, weights, change, start, draw)
        return packed, packing.unpack(packed, start) - weights
    packed, held = repack(raw, weights, change, start, draw)
    return packed, np.subtract(held, weights, out=None if held is weights else held)


def aimed_at(onto: str, packing: Packing, asked: Any, start: int, stop: int) -> Any:
    """Return a change in whole steps of the storage, in the basis in which it rounds."""
    if not onto:
        return asked
    steps, turned = packing.steps(start, stop), getattr(packing, "turned", None)
    if turned is None:
        return moved_onto(onto, asked, steps)
    return turned(moved_onto(onto, turned(asked), steps))


def write_rows(
    packing: Packing, begin: int, start: int, packed: Any, out: PositionedFile | Nowhere
) -> None:
    """Write packed rows from row `start` on, unless they do not lie in this order; see `Packing`.

    Args:
        begin: byte at which the tensor begins.
    """
    import numpy as np

    if not getattr(packing, "scattered", False):
        out.write(begin + packing.place(start), packed.reshape(-1).view(np.uint8))


def height_of(packing: Packing, columns: int, elements: int = BLOCK_ELEMENTS) -> int:
    """Return the number of rows of a block: whole units, of about so many elements."""
    return max(1, elements // (columns * packing.unit)) * packing.unit


def require_finite_values(name: str, dtype: str, written: Any, weights: Any, asked: Any) -> None:
    """Refuse packed weights that came out as NaN or infinity.

    Raises:
        NumericsError: naming the tensor, and saying why; see `not_finite`.
    """
    import numpy as np

    if np.isfinite(written.sum()) or np.isfinite(written).all():
        return
    raise not_finite(name, DTYPES[dtype].word, weights, asked, wider=False)

"""Compute one tensor of a checkpoint with its edits added, in blocks of rows and in reused buffers.

The borders of blocks do not depend on the number of threads, so the bytes do not either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loramerge.checkpoint.storage import Codec
from loramerge.files.dtypes import numpy_dtype
from loramerge.files.halves import widen
from loramerge.files.header import TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.files.tensors import Tensor
from loramerge.stream.changes import fill_change, row_adders
from loramerge.stream.edits import Edit
from loramerge.stream.on_grid import ELEMENTS, moved_onto, spacing
from loramerge.stream.packed_rows import compute_packed
from loramerge.stream.reading import stored_rows
from loramerge.stream.rounding import Rounder
from loramerge.stream.survival import Sums, Survival, measure
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers, Nowhere, TensorTask

__all__ = ["compute_tensor"]


def compute_tensor(
    name: str,
    tensors: Mapping[str, Tensor],
    infos: Mapping[str, TensorInfo],
    edits: Sequence[Edit],
    seed: int | None,
    finite: bool,
    out: PositionedFile | Nowhere,
    onto: str = "",
) -> TensorTask[Survival]:
    """Return the task of one tensor that changes, or that only changes its type.

    Args:
        tensors: those of the file, before.
        infos: the places in the output, of tensors beside this one too.
        edits: none where only the type changes.
        seed: rounds stochastically; None rounds to nearest.
        finite: refuse NaN and infinity of the base also where nothing is added.
        onto: see `moved_onto`; nothing rounds the sum.
    """
    tensor, info = edits[0].place.tensor if edits else tensors[name], infos[name]
    held = edits[0].place.require_held() if edits else None
    if held is not None and held.packing is not None:
        return compute_packed(name, held.nbytes, infos, edits, seed, out, onto)

    def run(buffers: Buffers) -> list[Survival]:
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):  # the rounder finds what is not finite
            return compute(buffers)

    def compute(buffers: Buffers) -> list[Survival]:
        if tensor.size == 0:
            return []
        codec = held.codec(info.dtype) if held is not None else None
        sums = one_pass(buffers, codec)
        if codec is not None and codec.overflowed():
            sums = one_pass(buffers, codec)
        for beside, raw in (codec.beside() if codec is not None else {}).items():
            out.write(infos[beside].start, raw)
        changed = codec is not None and codec.changed
        return [
            Survival(e.site.name, name, s.asked, s.along, s.error, s.base, changed)
            for e, s in zip(edits, sums, strict=True)
        ]

    def one_pass(buffers: Buffers, codec: Codec | None) -> list[Sums]:
        import numpy as np

        kind = "float64" if "F64" in (tensor.dtype, info.dtype) else "float32"
        rows = tensor.shape[0] if tensor.shape else 1
        columns = math.prod(tensor.shape[1:])
        rounder = Rounder(info.dtype, name, seed)
        stored, target = numpy_dtype(tensor.dtype), numpy_dtype(info.dtype)
        adders = [row_adders(edit, kind) for edit in edits]
        sums = [Sums() for _ in edits]
        height = max(1, (ELEMENTS if onto else BLOCK_ELEMENTS) // columns)
        read = stored_rows(tensor)
        fits = True
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            shape = (stop - start, columns)
            base = buffers.get("base", kind, shape)
            widen(read(start, stop, buffers.get("read", stored, shape)), base)
            rounded = buffers.get("rounded", target, shape)
            asked = buffers.get("asked", kind, shape)
            weights = base
            if codec is not None and not codec.plain:
                weights = codec.weights(base, start, buffers.get("weights", kind, shape))
            covered = fill_change(edits, adders, start, stop, weights, asked)
            if covered is None or codec is None:  # only the type changes
                rounder.round(base, rounded, asked)
                rounder.check(asked, base, allowed=not finite)
            else:
                back, exact = buffers.get("back", kind, shape), buffers.get("exact", kind, shape)
                aimed = asked
                if onto and held is not None and numpy_dtype(info.dtype) == stored:
                    steps = held.dequantise(spacing(base, info.dtype), start)
                    aimed = moved_onto(onto, asked, steps)
                codec.add(base, aimed, start, exact)
                fits = fits and codec.fits(start, stop)
                rounder.round(exact, rounded, back)
                codec.change(back, weights, start)
                for index, first, last in covered:
                    part = slice(first - start, last - start)
                    measure(sums[index], asked[part], back[part], weights[part])
                seen = sum(last - first for _, first, last in covered) == stop - start
                if fits and not (seen and all(math.isfinite(s.error) for s in sums)):
                    widen(rounded, back)
                    rounder.check(back, weights, asked)
            out.write(
                info.start + start * columns * target.itemsize, rounded.reshape(-1).view(np.uint8)
            )
        return sums

    return TensorTask(info.stop - info.start + (held.nbytes if held else 0), run)

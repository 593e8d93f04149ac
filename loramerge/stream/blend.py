"""Compute one tensor of a merge in blocks of rows, from the same rows of several checkpoints.

`combining` combines the inputs; the changes of adapters are added to that, and the sum is rounded once.
The borders of blocks do not depend on the number of threads, so the bytes do not either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loramerge.checkpoint import Place
from loramerge.checkpoint.storage import Codec, Packing
from loramerge.errors import FormatError, NumericsError, Setting
from loramerge.files.dtypes import DTYPES, PLAIN_FLOATS, numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.stream.changes import fill_change, row_adders
from loramerge.stream.combining import Combining
from loramerge.stream.ingredients import Blend, Blended
from loramerge.stream.packed_rows import height_of, require_finite_values, write_rows
from loramerge.stream.reading import stored_rows
from loramerge.stream.rounding import Rounder
from loramerge.stream.row_reader import RowReader
from loramerge.stream.summing import Summing, is_plain
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Buffers, Nowhere, TensorTask
from loramerge.stream.whole import Whole

__all__ = ["merge_tensor"]

BLOCK_ELEMENTS = 1 << 18  # of a block: fewer steps between which threads wait for the interpreter
_WRITTEN = 1 << 17  # of a block of a result whose rows do not depend on it: it stays in the cache


def merge_tensor(
    name: str,
    infos: Mapping[str, TensorInfo],
    blends: Sequence[Blend],
    whole: Whole,
    out: PositionedFile | Nowhere,
) -> TensorTask[Blended]:
    """Return the task of one tensor of the result.

    Args:
        infos: the places in the output.
        blends: of its parameters, which together cover its rows.
        whole: the merge that it is part of.

    Raises:
        NumericsError: if an input holds NaN or infinity, or a result does not fit its type.
    """
    info, held = infos[name], blends[0].target.require_held()

    def run(buffers: Buffers) -> list[Blended]:
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found and named
            return compute(buffers)

    def compute(buffers: Buffers) -> list[Blended]:
        if blends[0].target.tensor.size == 0:
            return []
        packing = blends[0].target.require_held().packing  # made here: it keeps the tensor's scales
        codec = held.codec(info.dtype) if packing is None else None
        writer = codec or packing
        assert writer is not None
        parts = [(blend, name, info, codec, packing, buffers, whole) for blend in blends]
        found = [_Blending(*one).write(out) for one in parts]
        if codec is not None and codec.overflowed():
            found = [_Blending(*one).write(out) for one in parts]
        for other, raw in writer.beside().items():
            out.write(infos[other].start, raw)
        for one in found:
            if not math.isfinite(one.survival.error):
                raise NumericsError(
                    f"merged values do not fit {DTYPES[info.dtype].word}",
                    module=one.survival.module,
                    hint=("give ", Setting("dtype", "float32"), " or lower the weights"),
                )
        return found

    return TensorTask(info.stop - info.start + held.nbytes, run)


def _require_apart(blend: Blend, packing: Packing) -> None:
    """Refuse a parameter whose rows share blocks with those of another.

    Raises:
        FormatError: naming the tensor.
    """
    if any(low % packing.unit or begin % packing.unit for low, _, begin in blend.target.pieces):
        raise FormatError(
            "the blocks of this tensor hold rows of two modules, which cannot be merged apart",
            file=blend.target.file.path,
            module=blend.target.name,
            hint="give a safetensors checkpoint first, in whose layout the result is written",
        )


class _Blending:
    """The computation of one parameter, block by block."""

    def __init__(
        self,
        blend: Blend,
        name: str,
        info: TensorInfo,
        codec: Codec | None,
        packing: Packing | None,
        buffers: Buffers,
        whole: Whole,
    ) -> None:
        """Prepare the computation.

        Args:
            codec, packing: one of them writes the rows of the target, for all of its parameters.
        """
        self.blend, self.name, self.info = blend, name, info
        self.codec, self.buffers = codec, buffers
        elements = blend.method.operator.space == "elements"
        wide = info.dtype in (("F64", "F32") if elements else ("F64",))
        self.kind = "float64" if wide else blend.kind
        self.inputs = Combining(blend, buffers, whole.pooled, BLOCK_ELEMENTS)
        if elements:
            self.inputs.gathered = self.kind
        self.packing = packing
        if self.packing is not None:
            _require_apart(blend, self.packing)
            self.inputs.height = height_of(self.packing, self.inputs.columns, BLOCK_ELEMENTS)
        self.adders = [row_adders(edit, self.kind, whole.reader) for edit in blend.edits]

    def write(self, out: PositionedFile | Nowhere) -> Blended:
        """Compute all blocks and write them at their places."""
        import numpy as np

        blend, kind, columns = self.blend, self.kind, self.inputs.columns
        combine = self.inputs.combination()
        measured = blend.base or blend.first or blend.target
        if (coefficients := self.inputs.coefficients) and self.plainly_stored(measured):
            return self.summed(measured, coefficients, out)
        if coefficients is None and self.plainly_stored(measured):
            self.inputs.lower(_WRITTEN)
        read = self.inputs.readers(kind)
        first = None  # changes are measured from the first input, also where it has no weight
        if not blend.on_base and measured != blend.terms[0].place:
            first = RowReader(measured, kind, self.buffers)
        wanted = along = error = size = 0.0
        known: dict[tuple[int, int], float] = {}
        for start, stop in self.inputs.spans():
            base, values = read(start, stop)
            shape = (stop - start, columns)
            reference = base
            if reference is None:  # sums are made in place of the first term
                reference = self.buffers.get("reference", kind, shape)
                if first is None:
                    reference[:] = values[0]
                else:
                    first.fill(start, stop, reference)
            elif len(values) > 1:
                self.multiply(values, known)
            exact = combine(start, values)
            if base is not None:
                exact = np.add(exact, base, out=self.buffers.get("exact", kind, shape))
            if blend.edits:
                self.add_changes(exact, start)
            written = self.store(exact, start, out)
            written -= exact
            asked = np.subtract(exact, reference, out=exact).reshape(-1)
            lost, before = written.reshape(-1), reference.reshape(-1)
            change = float(np.dot(asked, asked))
            wanted += change
            along += change + float(np.dot(lost, asked))
            size += float(np.dot(before, before))
            error += float(np.dot(lost, lost))
        changed = self.codec is not None and self.codec.changed
        survival = Survival(blend.site.name, self.name, wanted, along, error, size, changed)
        return Blended(survival, known, self.inputs.applied, blend.is_copy)

    def plainly_stored(self, measured: Place) -> bool:
        """Return whether all rows that are read and written lie in files as plain numbers."""
        blend, codec = self.blend, self.codec
        places = [blend.target, measured, *(term.place for term in blend.terms)]
        zeros = blend.on_base and blend.base is None
        plain = codec is not None and codec.plain and not blend.edits and not zeros
        return plain and self.info.dtype in PLAIN_FLOATS and all(is_plain(one) for one in places)

    def summed(
        self, measured: Place, coefficients: Sequence[float], out: PositionedFile | Nowhere
    ) -> Blended:
        """Write a weighted sum piece by piece."""
        blend, terms = self.blend, self.blend.terms
        places = [term.place for term in terms]
        summing = Summing(
            places, coefficients, measured, blend.on_base, blend.target, self.info, self.kind
        )
        sums = summing.write(out, self.buffers)
        known = {
            (terms[one].position, terms[other].position): found
            for (one, other), found in sums.products.items()
        }
        survival = Survival(
            blend.site.name, self.name, sums.wanted, sums.along, sums.error, sums.size, False
        )
        return Blended(survival, known, self.inputs.applied, blend.is_copy)

    def multiply(self, values: Sequence[Any], known: dict[tuple[int, int], float]) -> None:
        """Add the inner products of a block of the changes."""
        import numpy as np

        flat = [one.reshape(-1) for one in values]
        positions = [term.position for term in self.blend.terms]
        for i, one in enumerate(flat):
            for j, other in enumerate(flat[: i + 1]):
                key = positions[j], positions[i]
                known[key] = known.get(key, 0.0) + float(np.dot(one, other))

    def add_changes(self, merged: Any, start: int) -> None:
        """Add the changes of adapters to merged rows from `start` on, which they lie on."""
        import numpy as np

        for part, place, _ in self.stored_parts(merged, start):
            before = np.ascontiguousarray(part)
            change = np.empty(part.shape, part.dtype)
            fill_change(self.blend.edits, self.adders, place, place + len(part), before, change)
            part += change

    def stored_parts(self, rows: Any, start: int) -> Iterator[tuple[Any, int, slice]]:
        """Yield rows of the parameter from `start` on as the tensor stores them, in pieces.

        Yields:
            the piece, its first row in the tensor, and its rows among those given.
        """
        place = self.blend.target
        stored = rows.T if place.transposed else rows
        for low, high, begin in place.pieces:
            first, last = max(start, begin), min(start + len(stored), begin + high - low)
            if first < last:
                among = slice(first - start, last - start)
                yield stored[among], low + first - begin, among

    def store(self, exact: Any, start: int, out: PositionedFile | Nowhere) -> Any:
        """Round rows from `start` on and write them; return what was written, as floats."""
        import numpy as np

        written = self.buffers.get("written", self.kind, exact.shape)
        if self.packing is not None:
            return self.pack(exact, start, written, self.packing, out)
        assert self.codec is not None
        back = written.T if self.blend.target.transposed else written
        rounder = Rounder(self.info.dtype, self.name, None)
        target = numpy_dtype(self.info.dtype)
        for stored, place, among in self.stored_parts(exact, start):
            part = np.ascontiguousarray(stored)
            rounded = self.buffers.get("rounded", target, part.shape)
            if self.codec.plain:
                floats = back[among]
                if not floats.flags.c_contiguous:
                    floats = self.buffers.get("back", self.kind, part.shape)
                rounder.round(part, rounded, floats)
            else:
                floats = self.quantised(part, place, rounder, rounded)
            if not np.may_share_memory(floats, back):
                back[among] = floats
            offset = self.info.start + place * part.shape[1] * target.itemsize
            out.write(offset, rounded.reshape(-1).view(np.uint8))
        return written

    def pack(
        self, exact: Any, start: int, written: Any, packing: Packing, out: PositionedFile | Nowhere
    ) -> Any:
        """Pack rows from `start` on and write them; fill `written` with their weights."""
        for rows, place, among in self.stored_parts(exact, start):
            raw = packing.raw(place, place + len(rows))
            before = packing.unpack(raw, place)
            packed = packing.pack(raw, before, rows - before, place, None)
            written[among] = packing.unpack(packed, place)
            require_finite_values(self.name, self.info.dtype, written[among], before, rows - before)
            write_rows(packing, self.info.start, place, packed, out)
        return written

    def quantised(self, exact: Any, start: int, rounder: Rounder, rounded: Any) -> Any:
        """Round rows to a type with scales beside it; return what they stand for, as floats."""
        import numpy as np

        assert self.codec is not None
        place, shape = self.blend.target, exact.shape
        raw = stored_rows(place.tensor)(start, start + len(exact))
        stored = self.buffers.get("stored", self.kind, shape)
        np.copyto(stored, raw, casting="unsafe")
        before = self.codec.weights(stored, start, self.buffers.get("before", self.kind, shape))
        wanted = self.buffers.get("wanted", self.kind, shape)
        self.codec.add(stored, exact - before, start, wanted)
        back = self.buffers.get("back", self.kind, shape)
        rounder.round(wanted, rounded, back)
        self.codec.change(back, before, start)
        back += before
        return back

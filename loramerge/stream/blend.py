"""Compute one tensor of a merge in blocks of rows, from the same rows of several checkpoints.

An operator sees what it sees of adapters: the change of every input from a base, or the weights
themselves if there is no base. Statistics of a whole parameter are gathered first, in passes over its
blocks. The borders of blocks do not depend on the number of threads, so the bytes do not
either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loramerge.algebra.application import array_of, coefficients_of, final_factor
from loramerge.algebra.gathering import gather, products
from loramerge.algebra.views import Rows, Scalars
from loramerge.checkpoint.storage import Codec
from loramerge.errors import NumericsError, Setting
from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.positioned import PositionedFile
from loramerge.stream.ingredients import Blend, Blended
from loramerge.stream.reading import stored_rows
from loramerge.stream.rounding import Rounder
from loramerge.stream.row_reader import RowReader
from loramerge.stream.survival import Survival
from loramerge.stream.walk import Buffers, Nowhere, TensorTask

__all__ = ["merge_tensor"]

BLOCK_ELEMENTS = 1 << 16  # of a block: what an operator makes of it stays in the processor's cache


def merge_tensor(
    name: str,
    infos: Mapping[str, TensorInfo],
    blends: Sequence[Blend],
    out: PositionedFile | Nowhere,
) -> TensorTask[Blended]:
    """Return the task of one tensor of the result.

    Args:
        infos: the places in the output.
        blends: of its parameters, which together cover its rows.

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
        codec = held.codec(info.dtype)
        found = [_Blending(blend, name, info, codec, buffers).write(out) for blend in blends]
        if codec.overflowed():
            found = [_Blending(blend, name, info, codec, buffers).write(out) for blend in blends]
        for beside, raw in codec.beside().items():
            out.write(infos[beside].start, raw)
        for one in found:
            if not math.isfinite(one.survival.error):
                raise NumericsError(
                    f"merged values do not fit {DTYPES[info.dtype].word}",
                    module=one.survival.module,
                    hint=("give ", Setting("dtype", "float32"), " or lower the weights"),
                )
        return found

    return TensorTask(info.stop - info.start + held.nbytes, run)


class _Blending:
    """The computation of one parameter, block by block."""

    def __init__(
        self, blend: Blend, name: str, info: TensorInfo, codec: Codec, buffers: Buffers
    ) -> None:
        self.blend, self.name, self.info = blend, name, info
        self.codec, self.buffers = codec, buffers
        shape = blend.target.shape
        self.rows, self.columns = shape[0], math.prod(shape[1:])
        self.vector = len(shape) == 1  # an operator sees it as one row
        whole = self.vector or blend.target.transposed
        self.height = self.rows if whole else max(1, BLOCK_ELEMENTS // self.columns)
        elements = blend.method.operator.space == "elements"
        wide = info.dtype in (("F64", "F32") if elements else ("F64",))
        self.kind = "float64" if wide else blend.kind
        self.gathered = self.kind if elements else "float64"  # what statistics are taken from
        self.applied = 1.0  # the factor of the final scale

    # --- reading ------------------------------------------------------------------------------------

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield the rows of each block."""
        for start in range(0, self.rows, self.height):
            yield start, min(start + self.height, self.rows)

    def readers(self, kind: str) -> Callable[[int, int], tuple[Any, list[Any]]]:
        """Return the function that reads a block of the base, or None, and of every term's change."""
        base = None if self.blend.base is None else RowReader(self.blend.base, kind, self.buffers)
        terms = [RowReader(term.place, kind, self.buffers) for term in self.blend.terms]

        def read(start: int, stop: int) -> tuple[Any, list[Any]]:
            shape = (stop - start, self.columns)
            block = None
            if self.blend.on_base:
                block = self.buffers.get("base", kind, shape)
                if base is None:
                    block[:] = 0
                else:
                    base.fill(start, stop, block)
            values = [
                reader.fill(start, stop, self.buffers.get(f"term {i}", kind, shape))
                for i, reader in enumerate(terms)
            ]
            if block is not None:
                for one in values:
                    one -= block
            return block, values

        return read

    def all_changes(self) -> Iterator[Sequence[Any]]:
        """Yield blocks of the changes of all terms, as an operator sees them."""
        read = self.readers(self.gathered)
        for start, stop in self.spans():
            yield [self.seen(one) for one in read(start, stop)[1]]

    def seen(self, rows: Any) -> Any:
        """Return rows as an operator sees them: a vector is one row."""
        return rows.reshape(1, -1) if self.vector else rows

    # --- combining ----------------------------------------------------------------------------------

    def combination(self) -> Callable[[int, Sequence[Any]], Any]:
        """Return the function that combines a block of the terms' changes, which it may overwrite."""
        blend, method = self.blend, self.blend.method
        weights = tuple(term.weight for term in blend.terms)
        positions = tuple(term.position for term in blend.terms)
        name = blend.site.name
        if len(weights) == 1 and not method.operator.alone:
            self.applied = method.scale if isinstance(method.scale, float) else 1.0
            return self.sum_of([self.applied * weights[0]])
        if not weights:
            return self.sum_of([])
        if method.operator.space == "scalars":
            seen = Scalars(
                name, weights, positions, lambda: products(self.all_changes, len(weights))
            )
            coefficients, self.applied = coefficients_of(method, seen)
            return self.sum_of(coefficients)
        operator = method.operator
        declared = operator.statistics(method.parameters) if operator.statistics else {}
        size = self.rows * self.columns
        statistics = gather(declared, self.all_changes, len(weights), size)

        def combine(first: int, values: Sequence[Any]) -> Any:
            shown = tuple(self.seen(one) for one in values)
            rows = Rows(name, weights, positions, shown, first, statistics)
            return array_of(method, rows, shown[0].shape).reshape(values[0].shape)

        factor = self.applied = self.factor(combine, weights)

        def scaled(first: int, values: Sequence[Any]) -> Any:
            found = combine(first, values)
            return found if factor == 1.0 else factor * found

        return scaled

    def sum_of(self, coefficients: Sequence[float]) -> Callable[[int, Sequence[Any]], Any]:
        """Return the function that adds blocks at these coefficients, in place of the first."""

        def combine(first: int, values: Sequence[Any]) -> Any:
            if not values:
                return 0.0
            for one, coefficient in zip(values, coefficients, strict=True):
                one *= coefficient
            total, *rest = values
            for one in rest:
                total += one
            return total

        return combine

    def factor(
        self, combine: Callable[[int, Sequence[Any]], Any], weights: Sequence[float]
    ) -> float:
        """Return the factor of the final scale; norms are gathered in a pass where it needs them."""
        import numpy as np

        method = self.blend.method
        if method.scale != "norm-match":
            return final_factor(method, 1.0, [1.0] * len(weights))
        squares: list[float] = []
        energies: list[list[float]] = [[] for _ in weights]
        read = self.readers(self.gathered)
        for start, stop in self.spans():
            values = read(start, stop)[1]
            for energy, one in zip(energies, values, strict=True):
                energy.append(float(np.dot(one.reshape(-1), one.reshape(-1))))
            found = combine(start, values).reshape(-1)
            squares.append(float(np.dot(found, found)))
        norms = [
            abs(weight) * math.sqrt(math.fsum(energy))
            for weight, energy in zip(weights, energies, strict=True)
        ]
        return final_factor(method, math.sqrt(math.fsum(squares)), norms)

    # --- writing ------------------------------------------------------------------------------------

    def write(self, out: PositionedFile | Nowhere) -> Blended:
        """Compute all blocks and write them at their places."""
        import numpy as np

        blend, kind = self.blend, self.kind
        combine, read = self.combination(), self.readers(kind)
        first = None  # changes are measured from the first input, also where it has no weight
        measured = blend.first or blend.target
        if not blend.on_base and blend.terms[0].place != measured:
            first = RowReader(measured, kind, self.buffers)
        wanted = along = error = size = 0.0
        known: dict[tuple[int, int], float] = {}
        for start, stop in self.spans():
            base, values = read(start, stop)
            shape = (stop - start, self.columns)
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
            written = self.store(exact, start, out)
            asked = np.subtract(exact, reference, out=exact).reshape(-1)
            written -= reference
            flat, before = written.reshape(-1), reference.reshape(-1)
            wanted += float(np.dot(asked, asked))
            along += float(np.dot(flat, asked))
            size += float(np.dot(before, before))
            flat -= asked
            error += float(np.dot(flat, flat))
        changed = self.codec.changed
        survival = Survival(blend.site.name, self.name, wanted, along, error, size, changed)
        return Blended(survival, known, self.applied)

    def multiply(self, values: Sequence[Any], known: dict[tuple[int, int], float]) -> None:
        """Add the inner products of a block of the changes."""
        import numpy as np

        flat = [one.reshape(-1) for one in values]
        positions = [term.position for term in self.blend.terms]
        for i, one in enumerate(flat):
            for j, other in enumerate(flat[: i + 1]):
                key = positions[j], positions[i]
                known[key] = known.get(key, 0.0) + float(np.dot(one, other))

    def store(self, exact: Any, start: int, out: PositionedFile | Nowhere) -> Any:
        """Round rows from `start` on and write them; return what was written, as floats."""
        import numpy as np

        place = self.blend.target
        written = self.buffers.get("written", self.kind, exact.shape)
        stored, back = (exact.T, written.T) if place.transposed else (exact, written)
        rounder = Rounder(self.info.dtype, self.name, None)
        target = numpy_dtype(self.info.dtype)
        for low, high, begin in place.pieces:
            first, last = max(start, begin), min(start + len(stored), begin + high - low)
            if first >= last:
                continue
            rows, place_of = slice(first - start, last - start), low + first - begin
            part = np.ascontiguousarray(stored[rows])
            rounded = self.buffers.get("rounded", target, part.shape)
            if self.codec.plain:
                floats = back[rows]
                if not floats.flags.c_contiguous:
                    floats = self.buffers.get("back", self.kind, part.shape)
                rounder.round(part, rounded, floats)
            else:
                floats = self.quantised(part, place_of, rounder, rounded)
            if not np.may_share_memory(floats, back):
                back[rows] = floats
            offset = self.info.start + place_of * part.shape[1] * target.itemsize
            out.write(offset, rounded.reshape(-1).view(np.uint8))
        return written

    def quantised(self, exact: Any, start: int, rounder: Rounder, rounded: Any) -> Any:
        """Round rows to a type with scales beside it; return what they stand for, as floats."""
        import numpy as np

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

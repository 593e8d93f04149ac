"""Write tensors in another form than the base has: a wider type, or another storage."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from loramerge.checkpoint import CheckpointFile, Place
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.storage import Encoding, Writer
from loramerge.checkpoint.storages import encodings, held
from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.json_values import values_in
from loramerge.files.positioned import PositionedFile
from loramerge.stream.changes import fill_change, row_adders
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.packed_rows import require_finite_values
from loramerge.stream.reading import stored_weights
from loramerge.stream.rounding import Rounder, generator
from loramerge.stream.survival import Moved, Sums, Survival, measure
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers, Nowhere, TensorTask

__all__ = ["compute_anew", "forms_in", "superfluous", "without_layers"]

_LAYERS = "_quantization_metadata"  # of ComfyUI: which layers of the file are quantised
_MARKS = (".comfy_quant", ".input_scale", ".scale_input")


def forms_in(plan: BakePlan, file: CheckpointFile) -> Mapping[str, Encoding]:
    """Return the tensors of a file that get another form, with it; a wider type comes first."""
    anew = {} if plan.conversion is None else dict(plan.conversion.forms.get(file, {}))
    if plan.wider is None:
        return anew
    wide, bits = encodings()[DTYPES[plan.wider].word], DTYPES[plan.wider].bits
    for name, edits in plan.edits.get(file, {}).items():
        place = edits[0].place
        if isinstance(place.tensor, Composed):
            continue
        kind = DTYPES[place.tensor.dtype]
        if kind.bits < bits * kind.elements or place.require_held().beside:
            anew[name] = wide
        else:
            anew.pop(name, None)
    return anew


def superfluous(file: CheckpointFile, anew: Collection[str]) -> set[str]:
    """Return the names of the scales and marks of tensors that get another form."""
    tensors = file.open()[0]
    stored = {name: one for name in anew if (one := held(tensors, name)) is not None}
    found = {name for one in stored.values() for name in (*one.beside, *one.marks)}
    for name, one in stored.items():
        if one.beside or tensors[name].dtype in ("U8", "I8"):
            found |= {name.removesuffix(".weight") + end for end in _MARKS} & tensors.keys()
    return found


def without_layers(metadata: Mapping[str, str], wide: Collection[str]) -> dict[str, str]:
    """Return the entries of a header, in which these tensors are no longer listed as quantised."""
    found = dict(metadata)
    if not wide or _LAYERS not in found:
        return found
    try:
        content = values_in(found[_LAYERS])
        layers = content["layers"]
        for name in wide:
            layers.pop(name.removesuffix(".weight"), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return found
    return found | {_LAYERS: json.dumps(content)}


def compute_anew(
    name: str,
    new: str,
    place: Place,
    infos: Mapping[str, TensorInfo],
    edits: Sequence[Edit],
    form: Encoding,
    seed: int | None,
    out: PositionedFile | Nowhere,
) -> TensorTask[Survival]:
    """Return the task of one tensor that is read as it is held, changed, and written in another form.

    Args:
        new: its name in the output.
        place: the whole tensor.
        infos: places in the output, of the tensors beside this one too.
        edits: none where only the form changes.
    """
    info = infos[new]
    rows = place.tensor.shape[0] if place.tensor.shape else 1
    columns = math.prod(place.tensor.shape[1:])
    kind = "float64" if "F64" in (info.dtype, place.tensor.dtype) else "float32"

    def run(buffers: Buffers) -> list[Survival]:
        import numpy as np

        writer = _writer(form, new, place.tensor.shape, seed)
        weights_of = stored_weights(kind)
        adders = [row_adders(edit, kind) for edit in edits]
        sums, moved = [Sums() for _ in edits], Moved()
        draw = None if seed is None else partial(generator(seed, name).random, dtype=np.float32)
        packing = place.require_held().packing
        unit = math.lcm(writer.unit, 1 if packing is None else packing.unit)
        height = max(1, BLOCK_ELEMENTS // (columns * unit)) * unit
        blocks = [(start, min(start + height, rows)) for start in range(0, rows, height)]

        def changed(start: int, stop: int) -> tuple[Any, Any, Any]:
            weights = weights_of(place, start, stop)
            asked = buffers.get("asked", kind, weights.shape)
            covered = fill_change(edits, adders, start, stop, weights, asked)
            return weights, weights if covered is None else weights + asked, covered or ()

        if writer.looks:
            for start, stop in blocks:
                writer.look(changed(start, stop)[1])
        for start, stop in blocks:
            weights, exact, covered = changed(start, stop)
            with np.errstate(over="ignore", invalid="ignore"):
                raw, back = writer.store(exact, start, draw)
            given: Any = buffers.get("asked", kind, weights.shape) if covered else np.float32(0)
            require_finite_values(name, info.dtype, back, weights, given)
            moved.add(back, exact)
            if covered:
                asked, back = given, back - weights
            for index, first, last in covered:
                part = slice(first - start, last - start)
                measure(sums[index], asked[part], back[part], weights[part])
            out.write(info.start + writer.place(start), raw.reshape(-1).view(np.uint8))
        for other, data in writer.beside().items():
            out.write(infos[other].start, data)
        found = [
            Survival(e.site.name, name, s.asked, s.along, s.error, s.base)
            for e, s in zip(edits, sums, strict=True)
        ]
        whole = Survival("", name, 0.0, 0.0, 0.0, 0.0, moved=moved.error, weights=moved.weights)
        return [*found, whole]

    size = sum(infos[entry[0]].stop - infos[entry[0]].start
               for entry in form.entries(new, place.tensor.shape))  # fmt: skip
    return TensorTask(size, run)


def _writer(form: Encoding, name: str, shape: tuple[int, ...], seed: int | None) -> Writer:
    if form.dtype is None:
        return form.writer(name, shape)
    return _FloatWriter(form.dtype, name, shape, seed)


class _FloatWriter:
    """Writes plain floats; see `Writer`."""

    unit, looks = 1, False

    def __init__(self, dtype: str, name: str, shape: tuple[int, ...], seed: int | None) -> None:
        self._rounder, self._type = Rounder(dtype, name, seed), numpy_dtype(dtype)
        self._columns = math.prod(shape[1:])

    def look(self, weights: Any) -> None:
        """Do nothing: there are no scales."""

    def place(self, start: int) -> int:
        """Return the byte at which a row begins."""
        return start * self._columns * self._type.itemsize

    def store(self, weights: Any, start: int, draw: Any) -> tuple[Any, Any]:
        """Return rows in the type, and as floats again."""
        import numpy as np

        out, back = np.empty(weights.shape, self._type), np.empty_like(weights)
        self._rounder.round(weights, out, back)
        return out, back

    def beside(self) -> Mapping[str, bytes]:
        """Return nothing: there are no scales."""
        return {}

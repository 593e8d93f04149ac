"""Write tensors that adapters change in a wider type than the base has, without their scales."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from loramerge.checkpoint import CheckpointFile
from loramerge.checkpoint.composed import Composed
from loramerge.checkpoint.storage import HeldTensor
from loramerge.files.dtypes import DTYPES, numpy_dtype
from loramerge.files.header import TensorInfo
from loramerge.files.json_values import values_in
from loramerge.files.positioned import PositionedFile
from loramerge.stream.changes import fill_change, row_adders
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.packed_rows import height_of
from loramerge.stream.reading import stored_weights
from loramerge.stream.rounding import Rounder
from loramerge.stream.survival import Sums, Survival, measure
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers, Nowhere, TensorTask

__all__ = ["compute_widened", "superfluous", "widened", "without_layers"]

_LAYERS = "_quantization_metadata"  # of ComfyUI: which layers of the file are quantised
_MARKS = (".comfy_quant", ".input_scale", ".scale_input")


def widened(plan: BakePlan, file: CheckpointFile) -> Mapping[str, HeldTensor]:
    """Return the tensors of a file that get the wider type, as they are held."""
    if plan.wider is None:
        return {}
    found = {name: edits[0].place for name, edits in plan.edits.get(file, {}).items()}
    bits = DTYPES[plan.wider].bits
    return {
        name: place.require_held()
        for name, place in found.items()
        if not isinstance(place.tensor, Composed)
        and (
            DTYPES[place.tensor.dtype].bits < bits * DTYPES[place.tensor.dtype].elements
            or place.require_held().beside
        )
    }


def superfluous(file: CheckpointFile, wide: Mapping[str, HeldTensor]) -> set[str]:
    """Return the names of the scales and marks of tensors that get a wider type."""
    tensors = file.open()[0]
    found = {name for held in wide.values() for name in (*held.beside, *held.marks)}
    for name, held in wide.items():
        if held.beside or tensors[name].dtype in ("U8", "I8"):
            found |= {name.removesuffix(".weight") + end for end in _MARKS} & tensors.keys()
    return found


def without_layers(metadata: Mapping[str, str], wide: Mapping[str, HeldTensor]) -> dict[str, str]:
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


def compute_widened(
    name: str,
    infos: Mapping[str, TensorInfo],
    edits: Sequence[Edit],
    seed: int | None,
    out: PositionedFile | Nowhere,
) -> TensorTask[Survival]:
    """Return the task of one tensor that is read as it is held, changed and written as plain floats."""
    info, place = infos[name], edits[0].place
    rows, columns = place.tensor.shape[0], math.prod(place.tensor.shape[1:])
    kind = "float64" if "F64" in (info.dtype, place.tensor.dtype) else "float32"

    def run(buffers: Buffers) -> list[Survival]:
        import numpy as np

        weights_of, target = stored_weights(kind), numpy_dtype(info.dtype)
        rounder = Rounder(info.dtype, name, seed)
        adders = [row_adders(edit, kind) for edit in edits]
        sums = [Sums() for _ in edits]
        packing = place.require_held().packing
        height = max(1, BLOCK_ELEMENTS // columns)
        if packing is not None:
            height = height_of(packing, columns)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            shape = (stop - start, columns)
            weights = weights_of(place, start, stop)
            asked = buffers.get("asked", kind, shape)
            covered = fill_change(edits, adders, start, stop, weights, asked) or ()
            rounded, back = buffers.get("rounded", target, shape), buffers.get("back", kind, shape)
            with np.errstate(over="ignore", invalid="ignore"):
                rounder.round(weights + asked, rounded, back)
                rounder.check(back, weights, asked)
            back -= weights
            for index, first, last in covered:
                part = slice(first - start, last - start)
                measure(sums[index], asked[part], back[part], weights[part])
            offset = info.start + start * columns * target.itemsize
            out.write(offset, rounded.reshape(-1).view(np.uint8))
        return [
            Survival(e.site.name, name, s.asked, s.along, s.error, s.base)
            for e, s in zip(edits, sums, strict=True)
        ]

    return TensorTask(info.stop - info.start, run)

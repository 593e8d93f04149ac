"""The traces of adapters in a checkpoint, measured against its base one module at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from loramerge.adapter import Adapter, Site
from loramerge.algebra.compare import block_of
from loramerge.algebra.noise import precision_of, spacing
from loramerge.algebra.presence import Trace
from loramerge.algebra.terms import naming
from loramerge.algebra.weights import Weight
from loramerge.algebra.workers import ordered, steady_heap
from loramerge.checkpoint import Checkpoint, CheckpointFile, Place
from loramerge.events import Notify, ignore
from loramerge.files.dtypes import DTYPES
from loramerge.stream.bake import survey
from loramerge.stream.differences import is_bare, steps_of
from loramerge.stream.edits import BakePlan, Edit
from loramerge.stream.plan import match_adapters
from loramerge.stream.reading import read_weights
from loramerge.stream.walk import BLOCK_ELEMENTS, Buffers

__all__ = ["Presence", "presence", "rounded_anew", "sampled"]

# energy of rounding, relative to that of a change, up to which it takes no more than a third of a
# percent: what is lost at most is a quarter of a squared step for each number, three times that energy
_QUIET = 1e-3
_SAMPLES = 4  # tensors that are rounded anew to find a strength

Inputs = Sequence[tuple[Adapter, Weight]]
Key = tuple[CheckpointFile, str, tuple[int, int]]  # a tensor of a file, and rows of it


@dataclass
class Presence:
    """The traces of adapters in a checkpoint.

    Args:
        traces: of every module that they change.
        edits: of all of them together, in the base.
        touched: the rows of the base that they change.
        missing: names of modules that the checkpoint, or its base, lacks.
        kept_types: whether every module is stored in the same type in both.
        types: words of the types of these modules in the checkpoint.
        numbers: file and tensor of each edit → the number of the adapter of each of its changes.
    """

    traces: list[Trace] = field(default_factory=list)
    edits: dict[CheckpointFile, dict[str, list[Edit]]] = field(default_factory=dict)
    touched: set[Key] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    kept_types: bool = True
    types: set[str] = field(default_factory=set)
    numbers: dict[tuple[Site, tuple[int, int]], tuple[int, ...]] = field(default_factory=dict)

    def grown(self, factors: Sequence[float]) -> Presence:
        """Return it with the changes of each adapter times a factor."""

        def one(edit: Edit) -> Edit:
            numbers = self.numbers[edit.site, edit.place.rows]
            deltas = zip(edit.deltas, numbers, strict=True)
            return replace(edit, deltas=tuple(delta.scaled(factors[n]) for delta, n in deltas))

        edits = {
            file: {name: [one(edit) for edit in those] for name, those in tensors.items()}
            for file, tensors in self.edits.items()
        }
        return replace(self, edits=edits, traces=[t.scaled(factors) for t in self.traces])


class _Module(NamedTuple):
    """A module with the changes of several adapters.

    Args:
        edits: of each adapter, with its number.
        tuned: where the checkpoint stores the weight.
    """

    site: Site
    edits: tuple[tuple[int, Edit], ...]
    tuned: Place

    @property
    def base(self) -> Place:
        return self.edits[0][1].place


def presence(
    checkpoint: Checkpoint,
    base: Checkpoint,
    inputs: Inputs,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> Presence:
    """Measure the traces of adapters, each times its weight, in a checkpoint.

    Both checkpoints may have any layout and storage; memory is a few blocks of rows for each thread.

    Raises:
        FamilyError: if an adapter, or the base, is of another family.
        LoramergeError: see `stream.plan.match_adapters`.
    """
    steady_heap()
    found = Presence()
    modules: dict[tuple[Site, int], list[tuple[int, Edit]]] = {}
    places: dict[tuple[Site, int], Place] = {}
    for number, given in enumerate(inputs):
        here = match_adapters(base, [given], ("all",))
        there = match_adapters(checkpoint, [given], ("all",))
        found.missing += [*dict.fromkeys((*here.skipped, *there.skipped))]
        ours, theirs = _by_site(here.edits), _by_site(there.edits)
        for key, edit in ours.items():
            if key in theirs:
                modules.setdefault(key, []).append((number, edit))
                places[key] = theirs[key].place
    work = [_Module(key[0], tuple(edits), places[key]) for key, edits in modules.items()]
    for module in work:
        place = module.base
        found.touched.add((place.file, place.name, place.rows))
        found.kept_types &= _alike(place, module.tuned)
        joined = replace(
            module.edits[0][1],
            deltas=tuple(d for _, edit in module.edits for d in edit.deltas),
            offsets=tuple(o for _, edit in module.edits for o in edit.offsets),
            stretches=tuple(s for _, edit in module.edits for s in edit.stretches),
        )
        found.types.add(DTYPES[module.tuned.tensor.dtype].word)
        found.numbers[module.site, place.rows] = tuple(
            number for number, edit in module.edits for _ in edit.deltas
        )
        found.edits.setdefault(place.file, {}).setdefault(place.name, []).append(joined)
    measure = partial(_trace, buffers=Buffers())
    found.traces = list(ordered(measure, work, threads=threads, task="measuring", notify=notify))
    return found


def _by_site(edits: Mapping[CheckpointFile, Mapping[str, Sequence[Edit]]]) -> dict[Any, Edit]:
    """Return (site, its number among places of one site) → edit."""
    found: dict[tuple[Site, int], Edit] = {}
    for tensors in edits.values():
        for those in tensors.values():
            for edit in those:
                number = 0
                while (edit.site, number) in found:
                    number += 1
                found[edit.site, number] = edit
    return found


def _alike(one: Place, other: Place) -> bool:
    held = one.require_held(), other.require_held()
    return one.tensor.dtype == other.tensor.dtype and type(held[0]) is type(held[1])


def rounded_anew(
    found: Presence,
    base: Checkpoint,
    *,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Trace]:
    """Return the traces with what rounding keeps of their changes, where both have one storage.

    A base in the numbers of its type loses changes that are smaller than the distance of these; the
    sums are rounded again to know how much, in modules where that could be more than a little.
    """
    loud = {trace.module for trace in found.traces if trace.noise > _QUIET * trace.asked}
    if not found.kept_types or not loud:
        return found.traces
    kept: dict[str, list[tuple[float, float, float]]] = {}
    edits = {
        file: {
            name: those
            for name, those in tensors.items()
            if any(edit.site.name in loud for edit in those)
        }
        for file, tensors in found.edits.items()
    }
    plan = BakePlan(base, edits, [])
    for one in survey(plan, threads=threads, notify=notify):
        kept.setdefault(one.module, []).append((one.asked, one.along, one.error))
    result = []
    for trace in found.traces:
        sums = kept.get(trace.module) if trace.module in loud else None
        if sums:
            asked, along, error = sums.pop(0)
            share = along / asked if asked > 0 else 1.0
            trace = replace(trace, kept=share, lost=error)
        result.append(trace)
    return result


def sampled(found: Presence) -> Presence:
    """Return the traces and edits of a few tensors, from first to last."""
    known = {trace.module for trace in found.traces}
    names = [
        (file, name)
        for file, tensors in found.edits.items()
        for name, those in tensors.items()
        if any(edit.site.name in known for edit in those)
    ]
    step = max(1, len(names) // _SAMPLES)
    edits: dict[CheckpointFile, dict[str, list[Edit]]] = {}
    for file, name in names[::step][:_SAMPLES]:
        edits.setdefault(file, {})[name] = found.edits[file][name]
    modules = {e.site.name for some in edits.values() for those in some.values() for e in those}
    traces = [trace for trace in found.traces if trace.module in modules]
    return replace(found, traces=traces, edits=edits)


# ---- one module


def _trace(module: _Module, buffers: Buffers) -> Trace:
    import numpy as np

    with naming(module.site, str(module.tuned.file.path)):
        base, tuned = module.base, module.tuned
        rows, columns = base.shape[0], math.prod(base.shape[1:])
        wide = "F64" in (base.tensor.dtype, tuned.tensor.dtype)
        kind = "float64" if wide else "float32"
        adders = [_adders(edit, kind) for _, edit in module.edits]
        count = len(adders)
        gram, along = np.zeros((count, count)), np.zeros(count)
        moved = weights = noise = 0.0
        reads = [read_weights([(0, place)], kind) for place in (base, tuned)]
        steady = _alike(base, tuned)
        whole = any(place.transposed or place.heads for place in (base, tuned))
        height = rows if whole else max(1, BLOCK_ELEMENTS // max(1, columns))
        for start in range(0, rows, max(1, height)):
            stop = min(start + height, rows)
            before, after = (
                np.ascontiguousarray(read(start, stop).reshape(stop - start, columns))
                for read in reads
            )
            changes = buffers.get("changes", np.dtype(kind), (count * (stop - start), columns))
            parts = np.split(changes, count)
            for part, adds in zip(parts, adders, strict=True):
                for number, (offset, add) in enumerate(adds):
                    add(start + offset, stop + offset, before, part, number == 0)
            noise += _noise(tuned, after, start, stop)
            if not steady:
                noise += _noise(base, before, start, stop)
            weights += float(np.dot(before.reshape(-1), before.reshape(-1)))
            with np.errstate(invalid="ignore", over="ignore"):
                after -= before
                flat = [one.reshape(-1) for one in (*parts, after)]
                products = np.array([[np.dot(a, b) for b in flat] for a in flat], "float64")
            gram += products[:count, :count]
            along += products[:count, count]
            moved += float(products[count, count])
        terms = tuple(number for number, _ in module.edits)
        moved = moved if math.isfinite(moved) else math.inf
        return Trace(
            module.site.name, block_of(module.site), terms, gram, along, moved, weights, noise,
            rows * columns,
        )  # fmt: skip


def _adders(edit: Edit, kind: str) -> list[tuple[int, Any]]:
    """Return the functions that add rows of the module's change, and the row at which it begins."""
    reads = [read_weights(stretches, kind) for stretches in edit.stretches]
    found = zip(edit.deltas, edit.offsets, reads, strict=True)
    return [(offset, delta.row_adder(kind, read)) for delta, offset, read in found]


def _noise(place: Place, weights: Any, start: int, stop: int) -> float:
    """Return the ‖E‖² that rounding weights to their storage explains."""
    import numpy as np

    if is_bare(place):
        steps = spacing(weights, precision_of(weights, place.tensor.dtype)).reshape(-1)
    else:
        steps = np.ascontiguousarray(steps_of(place, start, stop), "float32").reshape(-1)
    return float(np.dot(steps, steps)) / 12

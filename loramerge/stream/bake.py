"""Bake adapters into a checkpoint: the same layout out, everything untouched byte for byte.

Files are walked in byte order. Untouched ranges are copied by the kernel where it can; touched
tensors are computed in blocks of rows in reused buffers. Memory is a few blocks per thread,
whatever the size of the checkpoint. Tasks write at fixed positions and block borders do not depend
on the number of threads, so the bytes do not either.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramerge.adapter import Delta, Replacement
from loramerge.adapter.delta import ReadRows
from loramerge.algebra.workers import ordered
from loramerge.checkpoint import CheckpointFile, Scale
from loramerge.errors import (
    AdapterError,
)
from loramerge.events import Notify, Progress, ignore
from loramerge.files.dtypes import DTYPES, is_float, numpy_dtype
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.positioned import COPY_BLOCK, PositionedFile
from loramerge.files.tensors import ArrayTensor, StoredTensor, Tensor
from loramerge.files.writer import AtomicFile, AtomicFolder, check_space, check_target
from loramerge.stream.plan import BakePlan, Edit
from loramerge.stream.reading import Stretch, reader
from loramerge.stream.rounding import Quantiser, Rounder

__all__ = ["Survival", "bake", "output_size", "survey"]

BLOCK_ELEMENTS = 1 << 18
_COPY_TASK = 4 * COPY_BLOCK


@dataclass(frozen=True)
class Survival:
    """How much of the requested change of one module is in the written weights.

    Args:
        asked: ‖ΔW_asked‖_F².
        along: ⟨ΔW_written, ΔW_asked⟩.
        error: ‖ΔW_written − ΔW_asked‖_F².
        base: ‖W‖_F² of the rows before.
        rescaled: whether the scale of the stored float8 values had to grow.
    """

    module: str
    tensor: str
    asked: float
    along: float
    error: float
    base: float
    rescaled: bool = False

    @property
    def survived(self) -> float:
        """Share of the change that survived rounding; 1 where nothing was asked."""
        return self.along / self.asked if self.asked > 0 else 1.0

    @property
    def relative_error(self) -> float:
        """‖ΔW_written − ΔW_asked‖ / ‖ΔW_asked‖."""
        return math.sqrt(self.error / self.asked) if self.asked > 0 else 0.0


@dataclass
class _Task:
    """One unit of work: copy a range, or compute a tensor."""

    size: int
    run: Callable[[_Buffers], list[Survival]]


class _Buffers(threading.local):
    """Arrays of one thread, kept from block to block."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Any] = {}

    def get(self, use: str, dtype: Any, shape: tuple[int, int]) -> Any:
        """Return an uninitialised array of `shape` for one use."""
        import numpy as np

        count = shape[0] * shape[1]
        key = (use, str(dtype))
        held = self._held.get(key)
        if held is None or held.size < count:
            held = self._held[key] = np.empty(max(count, BLOCK_ELEMENTS), dtype)
        return held[:count].reshape(shape)


@dataclass
class _Output:
    """One file to be written: its layout and where its bytes come from."""

    file: CheckpointFile
    head: bytes
    infos: dict[str, TensorInfo]
    tensors: Mapping[str, Tensor]
    metadata: dict[str, str]

    @property
    def size(self) -> int:
        return max((info.stop for info in self.infos.values()), default=len(self.head))


def _layout(file: CheckpointFile, plan: BakePlan, extra: Mapping[str, str]) -> _Output:
    tensors, metadata = file.open()
    if not _changes(file, plan) and not file.pickled:
        return _unchanged(file)
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"} | dict(extra)
    entries = [
        (name, plan.dtype if plan.dtype and is_float(t.dtype) else t.dtype, t.shape)
        for name, t in tensors.items()
    ]
    head, infos = build_header(entries, merged)
    return _Output(file, head, infos, tensors, merged)


def _changes(file: CheckpointFile, plan: BakePlan) -> bool:
    """Say whether a file comes out as another: by what is added, or by another type."""
    return bool(plan.edits.get(file)) or plan.dtype is not None


def _unchanged(file: CheckpointFile) -> _Output:
    """Return the layout of a file that is copied as it is, its header included."""
    tensors, metadata = file.open()
    stored = [tensor for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
    head = file.path.read_bytes() if not stored else stored[0].source.read(0, stored[0].info.start)
    return _Output(file, head, {t.info.name: t.info for t in stored}, tensors, dict(metadata))


def bake(
    plan: BakePlan,
    output: Path,
    *,
    force: bool = False,
    seed: int | None = None,
    metadata: Mapping[str, str] | None = None,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Carry out a plan.

    Args:
        output: file, or folder for a base that is a folder.
        seed: rounds stochastically with this seed; None rounds to nearest.
        metadata: entries to add to the header of every file that changes.
        late: gives replacements for entries of `metadata`, of the same lengths, before the files
            get their names (digests that are computed meanwhile).

    Returns:
        What survived, per module and place, in file order.

    Raises:
        OutputExists, DiskFull, NumericsError.
    """
    files = plan.checkpoint.files
    check_target(output, force=force)
    outputs = [_layout(f, plan, metadata or {} if _changes(f, plan) else {}) for f in files.weights]
    check_space(output, sum(o.size for o in outputs))
    progress = _Bytes(sum(o.size - len(o.head) for o in outputs), notify)
    if files.root is None:
        return _write_file(outputs[0], output, plan, force, seed, late, threads, progress)
    survivals: list[Survival] = []
    with AtomicFolder(output, force=force) as folder:
        for relative in files.others:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            _copy_other(files.root / relative, folder / relative, plan)
        for one in outputs:
            target = folder / one.file.relative
            survivals += _write_file(one, target, plan, False, seed, late, threads, progress)
    return survivals


def output_size(plan: BakePlan, metadata: Mapping[str, str]) -> int:
    """Return the exact bytes of the weight files that a plan writes."""
    layouts = (
        _layout(f, plan, metadata if _changes(f, plan) else {})
        for f in plan.checkpoint.files.weights
    )
    return sum(layout.size for layout in layouts)


class _Nowhere:
    """Takes the place of an output that nobody wants."""

    def write(self, offset: int, data: Any) -> None:
        """Forget the data."""


def survey(
    plan: BakePlan,
    *,
    seed: int | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Return what `bake` would, without writing anything."""
    buffers = _Buffers()
    nowhere = _Nowhere()
    tasks = []
    for file in plan.checkpoint.files.weights:
        edits = plan.edits.get(file)
        if not edits:
            continue
        output = _layout(file, plan, {})
        tasks += [
            _computed(output, name, edits[name], nowhere, seed)
            for name in output.tensors
            if name in edits
        ]
    found = ordered(
        lambda task: task.run(buffers), tasks, threads=threads, task="surveying", notify=notify
    )
    return [survival for one in found for survival in one]


def _copy_other(source: Path, target: Path, plan: BakePlan) -> None:
    """Copy a file that holds no weights; an index states its new total where the type changes."""
    if plan.dtype is None or not source.name.endswith(".index.json"):
        shutil.copyfile(source, target)
        return
    index = json.loads(source.read_text("utf-8"))
    shards = set(index.get("weight_map", {}).values())
    total = 0
    for file in plan.checkpoint.files.weights:
        if file.path.parent == source.parent and file.path.name in shards:
            total += sum(
                tensor.size
                * DTYPES[plan.dtype if is_float(tensor.dtype) else tensor.dtype].bits
                // 8
                for tensor in file.open()[0].values()
            )
    index.setdefault("metadata", {})["total_size"] = total
    target.write_text(json.dumps(index, indent=2), "utf-8")


class _Bytes:
    """Counts bytes done and tells about it."""

    def __init__(self, total: int, notify: Notify) -> None:
        self.total, self.notify, self.done = total, notify, 0

    def add(self, count: int) -> None:
        self.done += count
        self.notify(Progress("baking", self.done, self.total, "bytes"))


def _write_file(
    output: _Output,
    target: Path,
    plan: BakePlan,
    force: bool,
    seed: int | None,
    late: Future[Mapping[str, str]] | None,
    threads: int | None,
    progress: _Bytes,
) -> list[Survival]:
    edits = plan.edits.get(output.file, {})
    survivals: list[Survival] = []
    buffers = _Buffers()
    with AtomicFile(target, force=force) as out:
        out.resize(output.size)
        tasks = _tasks(output, edits, out, seed)

        def work(task: _Task) -> tuple[int, list[Survival]]:
            return task.size, task.run(buffers)

        with _WriteBehind(out) as behind:
            for size, found in ordered(work, tasks, threads=threads):
                survivals += found
                progress.add(size)
                behind.wrote(size)
        head = output.head
        if late is not None and _changes(output.file, plan):
            entries = [(i.name, i.dtype, i.shape) for i in output.infos.values()]
            head, _ = build_header(entries, output.metadata | dict(late.result()))
            assert len(head) == len(output.head), "late entries must keep their lengths"
        out.write(0, head)
    return survivals


class _WriteBehind:
    """Flushes what was written from time to time in a thread of its own.

    The disk works while the next tensors are computed, and little is left for the final flush.
    """

    _EVERY = 256 << 20

    def __init__(self, file: PositionedFile) -> None:
        self._file, self._since = file, 0
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def wrote(self, count: int) -> None:
        self._since += count
        if self._since >= self._EVERY and (self._running is None or self._running.done()):
            self._since = 0
            self._running = self._pool.submit(self._file.flush)

    def __enter__(self) -> _WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)


def _tasks(
    output: _Output, edits: Mapping[str, list[Edit]], out: PositionedFile, seed: int | None
) -> list[_Task]:
    """Cut a file into tasks in byte order; neighbouring untouched tensors become one range."""
    tasks: list[_Task] = []
    scales = {e[0].place.scale for e in edits.values()}
    with_weights = {scale.name for scale in scales if scale is not None}  # written with theirs
    run: tuple[StoredTensor, int, int, int] | None = None  # first tensor, start, offset, count

    def close_run() -> None:
        nonlocal run
        if run is not None:
            tasks.extend(_copies(*run, out))
            run = None

    for name, tensor in output.tensors.items():
        info = output.infos[name]
        if name in with_weights:
            close_run()
        elif name in edits or info.dtype != tensor.dtype:
            close_run()
            tasks.append(_computed(output, name, edits.get(name, []), out, seed))
        elif isinstance(tensor, StoredTensor):
            size = info.stop - info.start
            if run is not None and run[1] + run[3] == tensor.info.start:
                run = (*run[:3], run[3] + size)
            else:
                close_run()
                run = (tensor, tensor.info.start, info.start, size)
        else:
            close_run()
            tasks.append(_plain(tensor, info, out))
    close_run()
    return tasks


def _copies(
    first: StoredTensor, start: int, offset: int, count: int, out: PositionedFile
) -> list[_Task]:
    def copy(done: int, size: int) -> _Task:
        def run(_: _Buffers) -> list[Survival]:
            out.copy_from(first.source, start + done, offset + done, size)
            return []

        return _Task(size, run)

    return [copy(done, min(_COPY_TASK, count - done)) for done in range(0, count, _COPY_TASK)]


def _plain(tensor: Tensor, info: TensorInfo, out: PositionedFile) -> _Task:
    def run(_: _Buffers) -> list[Survival]:
        if tensor.nbytes:
            out.write(info.start, tensor.raw())
        return []

    return _Task(info.stop - info.start, run)


@dataclass
class _Sums:
    asked: float = 0.0
    along: float = 0.0
    error: float = 0.0
    base: float = 0.0


def _quantiser(scale: Scale | None, dtype: str, rows: int) -> Quantiser:
    """Return what stands between the weights and the stored values of a tensor."""
    if scale is None:
        return Quantiser(None, dtype, shared=True)
    return Quantiser(scale.column(rows), dtype, shared=scale.tensor.size == 1)


def _computed(
    output: _Output,
    name: str,
    edits: Sequence[Edit],
    out: PositionedFile | _Nowhere,
    seed: int | None,
) -> _Task:
    """Make the task of one tensor that changes, or that only changes its type."""
    tensor, info = output.tensors[name], output.infos[name]
    scale = edits[0].place.scale if edits else None  # beside the tensor

    def run(buffers: _Buffers) -> list[Survival]:
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):  # the rounder finds what is not finite
            return compute(buffers)

    def compute(buffers: _Buffers) -> list[Survival]:
        rows = tensor.shape[0] if tensor.shape else 1
        if tensor.size == 0:
            return []
        quantiser = _quantiser(scale, info.dtype, rows)
        sums = one_pass(buffers, quantiser)
        if quantiser.overflowed():
            assert scale is not None
            quantiser.fit(scale.tensor.dtype)
            sums = one_pass(buffers, quantiser)
        if scale is not None:
            stored = quantiser.fit(scale.tensor.dtype)[: scale.tensor.size]
            raw = ArrayTensor(stored).raw() if quantiser.changed else scale.tensor.raw()
            out.write(output.infos[scale.name].start, raw)
        changed = quantiser.changed
        return [
            Survival(e.site.name, name, s.asked, s.along, s.error, s.base, changed)
            for e, s in zip(edits, sums, strict=True)
        ]

    def one_pass(buffers: _Buffers, quantiser: Quantiser) -> list[_Sums]:
        import numpy as np

        kind = "float64" if "F64" in (tensor.dtype, info.dtype) else "float32"
        rows = tensor.shape[0] if tensor.shape else 1
        columns = math.prod(tensor.shape[1:])
        rounder = Rounder(info.dtype, name, seed)
        stored, target = numpy_dtype(tensor.dtype), numpy_dtype(info.dtype)
        adders = [_adders(edit, kind) for edit in edits]
        sums = [_Sums() for _ in edits]
        height = max(1, BLOCK_ELEMENTS // columns)
        whole = (
            tensor.numpy().reshape(rows, columns) if not isinstance(tensor, StoredTensor) else None
        )
        fits = True
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            shape = (stop - start, columns)
            if whole is None:
                assert isinstance(tensor, StoredTensor)
                read = buffers.get("read", stored, shape)
                offset = tensor.info.start + start * columns * stored.itemsize
                tensor.source.read_into(offset, read.reshape(-1).view(np.uint8))
            else:
                read = whole[start:stop]
            base = buffers.get("base", kind, shape)
            np.copyto(base, read, casting="unsafe")
            rounded = buffers.get("rounded", target, shape)
            asked = buffers.get("asked", kind, shape)
            weights = base
            if not quantiser.plain:
                weights = quantiser.weights(base, start, buffers.get("weights", kind, shape))
            covered = _ask(edits, adders, start, stop, weights, asked)
            if covered is None:  # only the type changes
                rounder.round(base, rounded)
                rounder.check(rounded.astype(kind))
            else:
                back = buffers.get("back", kind, shape)
                quantiser.added(base, asked, start, back)
                fits = fits and quantiser.fits(start, stop)
                rounder.round(back, rounded)
                np.copyto(back, rounded, casting="unsafe")
                if fits:
                    rounder.check(back)
                quantiser.change(back, weights, start)
                _measure(covered, start, sums, asked, back, weights)
            out.write(
                info.start + start * columns * target.itemsize, rounded.reshape(-1).view(np.uint8)
            )
        return sums

    return _Task(info.stop - info.start + (scale.tensor.nbytes if scale else 0), run)


def _adders(edit: Edit, compute: str) -> list[Any]:
    """Return row adders in the rows of the stored tensor."""
    reads = [reader(stretches, compute) for stretches in edit.stretches]
    if not edit.place.transposed:
        return [d.row_adder(compute, read) for d, read in zip(edit.deltas, reads, strict=True)]
    rows, columns = edit.place.shape

    def transposed(delta: Delta, offset: int, stretches: Sequence[Stretch], read: ReadRows) -> Any:
        if isinstance(delta, Replacement):
            raise AdapterError(
                "a replacement of a transposed tensor is not supported", module=edit.site.name
            )
        # the whole tensor at once: the few that are stored so are small
        height = max(begin + place.shape[0] for begin, place in stretches)
        base = read(0, height) if delta.needs_base else None
        whole = delta.dense(base, dtype=compute).reshape(-1, columns)
        flipped = whole[offset : offset + rows].T

        def add(start: int, stop: int, _: Any, out: Any, fresh: bool) -> None:
            rows = flipped[start - offset : stop - offset]
            if fresh:
                out[:] = rows
            else:
                out += rows

        return add

    return [
        transposed(*one)
        for one in zip(edit.deltas, edit.offsets, edit.stretches, reads, strict=True)
    ]


def _ask(
    edits: Sequence[Edit],
    adders: Sequence[Sequence[Any]],
    start: int,
    stop: int,
    base: Any,
    asked: Any,
) -> list[tuple[int, int, int]] | None:
    """Fill `asked` with ΔW of rows start:stop; return (edit, first, last) rows covered, or None."""
    covered = []  # index, first, last, what to add to a stored row to have the module's
    for index, edit in enumerate(edits):
        for low, high, begin in edit.place.pieces:
            first, last = max(low, start), min(high, stop)
            if first < last:
                covered.append((index, first, last, begin - low))
    if not edits:
        return None
    if sum(last - first for _, first, last, _ in covered) != stop - start:
        asked[:] = -0.0  # leaves every value as it is, the sign of a zero included
    for index, first, last, shift in covered:
        rows = slice(first - start, last - start)
        for number, add in enumerate(adders[index]):
            begin = shift + edits[index].offsets[number]
            add(first + begin, last + begin, base[rows], asked[rows], number == 0)
    return [(index, first, last) for index, first, last, _ in covered]


def _measure(
    covered: Sequence[tuple[int, int, int]],
    start: int,
    sums: Sequence[_Sums],
    asked: Any,
    written: Any,
    base: Any,
) -> None:
    """Add one block's products to the sums of the edits it covers."""
    import numpy as np

    for index, first, last in covered:
        rows = slice(first - start, last - start)
        a, w, b = (x[rows].reshape(-1) for x in (asked, written, base))
        one = sums[index]
        one.asked += float(np.dot(a, a))
        one.along += float(np.dot(w, a))
        one.base += float(np.dot(b, b))
        w -= a
        one.error += float(np.dot(w, w))

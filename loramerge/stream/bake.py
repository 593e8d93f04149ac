"""Bake adapters into a checkpoint: the same layout out, everything untouched byte for byte.

Files are walked in byte order. Untouched ranges are copied by the kernel where it can; touched
tensors are computed in blocks of rows in reused buffers. Memory is a few blocks per thread,
whatever the size of the checkpoint. Tasks write at fixed positions and block borders do not depend
on the number of threads, so the bytes do not either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from loramerge.algebra.workers import ordered
from loramerge.checkpoint import CheckpointFile
from loramerge.events import Notify, Progress, ignore
from loramerge.files.dtypes import DTYPES, is_float
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.positioned import COPY_BLOCK, PositionedFile
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.files.writer import AtomicFile, AtomicFolder, check_space, check_target
from loramerge.stream.plan import BakePlan, Edit
from loramerge.stream.rows import Buffers, Layout, Nowhere, Survival, Task, computed

__all__ = ["bake", "output_size", "survey"]

_COPY_TASK = 4 * COPY_BLOCK


def _layout(file: CheckpointFile, plan: BakePlan, extra: Mapping[str, str]) -> Layout:
    tensors, metadata = file.open()
    if not _changes(file, plan) and not file.pickled:
        return _unchanged(file)
    merged = {k: v for k, v in metadata.items() if k != "modelspec.hash_sha256"} | dict(extra)
    entries = [
        (name, plan.dtype if plan.dtype and is_float(t.dtype) else t.dtype, t.shape)
        for name, t in tensors.items()
    ]
    head, infos = build_header(entries, merged)
    return Layout(file, head, infos, tensors, merged)


def _changes(file: CheckpointFile, plan: BakePlan) -> bool:
    """Say whether a file comes out as another: by what is added, or by another type."""
    return bool(plan.edits.get(file)) or plan.dtype is not None


def _unchanged(file: CheckpointFile) -> Layout:
    """Return the layout of a file that is copied as it is, its header included."""
    tensors, metadata = file.open()
    stored = [tensor for tensor in tensors.values() if isinstance(tensor, StoredTensor)]
    head = file.path.read_bytes() if not stored else stored[0].source.read(0, stored[0].info.start)
    return Layout(file, head, {t.info.name: t.info for t in stored}, tensors, dict(metadata))


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


def survey(
    plan: BakePlan,
    *,
    seed: int | None = None,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Survival]:
    """Return what `bake` would, without writing anything."""
    buffers = Buffers()
    nowhere = Nowhere()
    tasks = []
    for file in plan.checkpoint.files.weights:
        edits = plan.edits.get(file)
        if not edits:
            continue
        output = _layout(file, plan, {})
        tasks += [
            computed(output, name, edits[name], nowhere, seed)
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
    output: Layout,
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
    buffers = Buffers()
    with AtomicFile(target, force=force) as out:
        out.resize(output.size)
        tasks = _tasks(output, edits, out, seed)

        def work(task: Task) -> tuple[int, list[Survival]]:
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
    output: Layout, edits: Mapping[str, list[Edit]], out: PositionedFile, seed: int | None
) -> list[Task]:
    """Cut a file into tasks in byte order; neighbouring untouched tensors become one range."""
    tasks: list[Task] = []
    with_weights = {name for e in edits.values() for name in e[0].place.require_held().beside}
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
            tasks.append(computed(output, name, edits.get(name, []), out, seed))
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
) -> list[Task]:
    def copy(done: int, size: int) -> Task:
        def run(_: Buffers) -> list[Survival]:
            out.copy_from(first.source, start + done, offset + done, size)
            return []

        return Task(size, run)

    return [copy(done, min(_COPY_TASK, count - done)) for done in range(0, count, _COPY_TASK)]


def _plain(tensor: Tensor, info: TensorInfo, out: PositionedFile) -> Task:
    def run(_: Buffers) -> list[Survival]:
        if tensor.nbytes:
            out.write(info.start, tensor.raw())
        return []

    return Task(info.stop - info.start, run)

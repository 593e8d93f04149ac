"""Write checkpoint files in the order of their bytes, computing some tensors and copying the rest.

A verb that writes a checkpoint makes a layout of each file with the tensors to compute, each by a
task; the walk does the rest. Other tensors are copied in ranges, by the kernel if possible. Tasks
write at fixed positions, so that the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from loramerge.algebra.workers import ordered, steady_heap
from loramerge.events import Notify, Progress, ignore
from loramerge.files.atomic import AtomicFile
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.positioned import COPY_BLOCK, PositionedFile
from loramerge.files.tensors import StoredTensor, Tensor
from loramerge.stream.finite import require_finite, require_finite_range

__all__ = [
    "BLOCK_ELEMENTS",
    "Buffers",
    "Layout",
    "Nowhere",
    "TensorTask",
    "WriteBehind",
    "Written",
    "compute",
    "tasks_of",
    "write",
]

BLOCK_ELEMENTS = 1 << 18  # of the blocks of rows in which tensors are computed
_COPY_TASK = 4 * COPY_BLOCK

Finding = TypeVar("Finding")  # what a task reports about the tensor that it computed


class Buffers(threading.local):
    """Arrays of one thread, kept from block to block."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, Any], Any] = {}

    def get(self, use: str, dtype: Any, shape: tuple[int, int]) -> Any:
        """Return an uninitialised array of `shape` for one use."""
        import numpy as np

        count = shape[0] * shape[1]
        key = (use, dtype)
        held = self._held.get(key)
        if held is None or held.size < count:
            held = self._held[key] = np.empty(max(count, BLOCK_ELEMENTS), dtype)
        return held[:count].reshape(shape)


class Nowhere:
    """A replacement of the output file for runs that only measure."""

    def write(self, offset: int, data: Any) -> None:
        """Discard the data."""


@dataclass
class TensorTask(Generic[Finding]):
    """One unit of work: copy a range, or compute a tensor.

    Args:
        size: bytes of the output that it writes.
    """

    size: int
    run: Callable[[Buffers], list[Finding]]


@dataclass
class Layout(Generic[Finding]):
    """One file to be written: the place of each tensor in it, and where its bytes come from.

    Args:
        head: the bytes before the data.
        infos: name → place in the output.
        tensors: name → tensor to copy, or to compute from; in the order of their bytes.
        metadata: strings of the header.
        computed: name → function that makes the task of the tensor, given the file to write to.
        alongside: names of tensors that those tasks write, beside their own.
        finite: refuse NaN and infinity in tensors that are copied.
        rebuilt: builds the head of a file of its format; see `build_header`.
        alignment: number of which the size of the file is a multiple.
    """

    head: bytes
    infos: Mapping[str, TensorInfo]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    computed: Mapping[str, Callable[[PositionedFile | Nowhere], TensorTask[Finding]]] = field(
        default_factory=dict
    )
    alongside: Collection[str] = ()
    finite: bool = False
    rebuilt: Callable[..., tuple[bytes, Mapping[str, TensorInfo]]] = build_header
    alignment: int = 1

    @property
    def size(self) -> int:
        """Bytes of the file."""
        stop = max((info.stop for info in self.infos.values()), default=len(self.head))
        return stop + -stop % self.alignment


class Written:
    """Counts the bytes that are written and reports them."""

    def __init__(self, layouts: Iterable[Layout[Any]], task: str, notify: Notify) -> None:
        self._total = sum(layout.size - len(layout.head) for layout in layouts)
        self._task, self._notify, self._done = task, notify, 0

    def add(self, count: int) -> None:
        """Report a number of further bytes."""
        self._done += count
        self._notify(Progress(self._task, self._done, self._total, "bytes"))


# layout, open file, counter and threads → what the tasks found, in the order of the tensors
Fill = Callable[[Layout[Finding], PositionedFile, Written, int | None], list[Finding]]


def write(
    layout: Layout[Finding],
    target: Path,
    written: Written,
    *,
    force: bool = False,
    late: Future[Mapping[str, str]] | None = None,
    threads: int | None = None,
    fill: Fill[Finding] | None = None,
    accept: Callable[[list[Finding]], None] | None = None,
) -> list[Finding]:
    """Write one file atomically; return the results of the tasks, in the order of the tensors.

    Args:
        fill: writes the tensors in another way than here, see `parts`.
        late: replacements for entries of the metadata, of the same lengths, ready before the file
            gets its name (digests that are computed meanwhile).
        accept: is given the results before the file gets its name, and may refuse it.
    """
    with AtomicFile(target, force=force) as out:
        out.resize(layout.size)
        found = (fill or _write_here)(layout, out, written, threads)
        if accept is not None:
            accept(found)
        out.write(0, layout.head if late is None else _completed_head(layout, late.result()))
    return found


def _write_here(
    layout: Layout[Finding], out: PositionedFile, written: Written, threads: int | None
) -> list[Finding]:
    """Write all tensors of a file by threads of this process; return the results of the tasks."""
    found: list[Finding] = []
    buffers = Buffers()
    steady_heap()

    def work(task: TensorTask[Finding]) -> tuple[int, list[Finding]]:
        return task.size, task.run(buffers)

    with WriteBehind(out) as behind:
        for size, findings in ordered(work, list(tasks_of(layout, out)), threads=threads):
            found += findings
            written.add(size)
            behind.add(size)
    return found


def compute(
    layouts: Iterable[Layout[Finding]],
    *,
    task: str,
    threads: int | None = None,
    notify: Notify = ignore,
) -> list[Finding]:
    """Run the tasks of all computed tensors without writing anything; return their results."""
    buffers, nowhere = Buffers(), Nowhere()
    steady_heap()
    tasks = [
        layout.computed[name](nowhere)
        for layout in layouts
        for name in layout.tensors
        if name in layout.computed
    ]
    found = ordered(lambda one: one.run(buffers), tasks, threads=threads, task=task, notify=notify)
    return [finding for one in found for finding in one]


def _completed_head(layout: Layout[Any], entries: Mapping[str, str]) -> bytes:
    """Return the head of a file with some entries of its metadata replaced."""
    places = [(i.name, i.dtype, i.shape) for i in layout.infos.values()]
    head, _ = layout.rebuilt(places, {**layout.metadata, **entries})
    assert len(head) == len(layout.head), "late entries must keep their lengths"
    return head


class WriteBehind:
    """A thread that flushes the file from time to time.

    The disk works while the next tensors are computed, and little is left for the final flush.
    """

    _EVERY = 256 << 20

    def __init__(self, file: PositionedFile) -> None:
        self._file, self._since = file, 0
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def add(self, count: int) -> None:
        """Count a number of further written bytes."""
        self._since += count
        if self._since >= self._EVERY and (self._running is None or self._running.done()):
            self._since = 0
            self._running = self._pool.submit(self._file.flush)

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)


@dataclass
class _Range:
    """Neighbouring tensors of a file that are copied together."""

    tensors: list[StoredTensor]
    start: int
    offset: int
    count: int

    def continues(self, tensor: StoredTensor, info: TensorInfo) -> bool:
        """Return whether a tensor directly follows the range in the same file, and in the output."""
        behind = self.start + self.count == tensor.info.start
        behind = behind and self.offset + self.count == info.start
        return behind and self.tensors[0].source is tensor.source


def tasks_of(layout: Layout[Finding], out: PositionedFile) -> Iterator[TensorTask[Finding]]:
    """Yield the tasks of a file in the order of its bytes."""
    run: _Range | None = None
    for name, tensor in layout.tensors.items():
        info = layout.infos[name]
        copied = name not in layout.computed and name not in layout.alongside
        if copied and isinstance(tensor, StoredTensor):
            if run is not None and run.continues(tensor, info):
                run.count += info.stop - info.start
                run.tensors.append(tensor)
                continue
            yield from _copies(run, out, finite=layout.finite)
            run = _Range([tensor], tensor.info.start, info.start, info.stop - info.start)
            continue
        yield from _copies(run, out, finite=layout.finite)
        run = None
        if name in layout.computed:
            yield layout.computed[name](out)
        elif copied:
            yield _plain(tensor, info, out, finite=layout.finite)
    yield from _copies(run, out, finite=layout.finite)


def _copies(run: _Range | None, out: PositionedFile, *, finite: bool) -> Iterator[TensorTask[Any]]:
    """Yield the tasks that copy a range, in parts of a size that threads can share."""
    if run is None:
        return
    tensors = run.tensors

    def copy(start: int, offset: int, size: int) -> TensorTask[Any]:
        def work(_: Buffers) -> list[Any]:
            out.copy_from(tensors[0].source, start, offset, size)
            if finite:
                require_finite_range(tensors, start, start + size)
            return []

        return TensorTask(size, work)

    for done in range(0, run.count, _COPY_TASK):
        size = min(_COPY_TASK, run.count - done)
        yield copy(run.start + done, run.offset + done, size)


def _plain(
    tensor: Tensor, info: TensorInfo, out: PositionedFile, *, finite: bool
) -> TensorTask[Any]:
    def work(_: Buffers) -> list[Any]:
        if tensor.nbytes:
            raw = tensor.raw()
            if finite:
                require_finite(info.name, info.dtype, raw)
            out.write(info.start, raw)
        return []

    return TensorTask(info.stop - info.start, work)

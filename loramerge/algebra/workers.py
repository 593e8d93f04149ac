"""A thread pool over modules, with one BLAS thread each.

At these sizes one BLAS thread per module is faster than several per product, and the bytes of a
result do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

from loramerge.events import Notify, Progress, ignore

__all__ = ["ONE_BLAS_THREAD", "available_cpus", "one_heap", "ordered", "steady_heap"]

ONE_BLAS_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_ARENAS, _MAPPED, _TRIMMED = -8, -3, -1  # glibc's M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def one_heap() -> None:
    """Let all threads share one heap, if the C library has several.

    Each heap keeps the memory freed in it, so two jobs at a time would need the memory of three or
    four. Sharing costs no time here. No effect outside glibc.
    """
    _set_heap((_ARENAS, 1))


@cache
def steady_heap() -> None:
    """Keep the memory of blocks that are freed for the next ones, if the C library returns it.

    Otherwise the kernel clears every new array of some hundred kilobytes, which takes several times as
    long as to compute it. No effect outside glibc.
    """
    _set_heap((_MAPPED, 4 << 20), (_TRIMMED, 64 << 20))


def _set_heap(*options: tuple[int, int]) -> None:
    import ctypes

    try:
        for option, value in options:
            ctypes.CDLL(None).mallopt(option, value)
    except (OSError, AttributeError, TypeError):
        return  # another C library


def _single_blas() -> AbstractContextManager[object]:
    """Limit BLAS to one thread; costs nothing if the command line did so before numpy started."""
    if all(os.environ.get(name) == value for name, value in ONE_BLAS_THREAD.items()):
        return nullcontext()
    import numpy  # noqa: F401  # its BLAS must be loaded before it can be held
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def ordered(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int | None = None,
    task: str = "",
    notify: Notify = ignore,
) -> Iterator[Result]:
    """Yield `work(item)` for every item, in order, computed by up to `threads` threads.

    Results wait for their turn; at most a few per thread are held, so that memory stays bounded by
    the modules in flight. The first error stops the rest.
    """
    todo = list(items)
    count = min(threads or available_cpus(), max(1, len(todo)))
    with _single_blas():
        if count == 1:
            for done, item in enumerate(todo, 1):
                yield work(item)
                notify(Progress(task, done, len(todo)))
            return
        with ThreadPoolExecutor(count) as pool:
            ahead = 4 * count
            pending = [pool.submit(work, item) for item in todo[:ahead]]
            try:
                for done in range(len(todo)):
                    result = pending[done].result()
                    pending[done] = None  # type: ignore[call-overload]  # free it
                    if done + ahead < len(todo):
                        pending.append(pool.submit(work, todo[done + ahead]))
                    yield result
                    notify(Progress(task, done + 1, len(todo)))
            finally:
                for future in pending:
                    if future is not None:
                        future.cancel()

"""Executors: of the tasks of a recipe, or of the parts of a checkpoint.

This thread, a pool of threads, processes of this machine, or a Dask cluster.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import loramerge.stream.parts  # noqa: F401  # open files and families can be pickled from then on
from loramerge.algebra.workers import available_cpus, one_heap
from loramerge.errors import MissingExtra, Setting, UsageError
from loramerge.interruption import deferred

__all__ = ["Processes", "dask_executor", "pool", "workers"]

_SAFE_PATH = "PYTHONSAFEPATH"
_MOST = 8  # processes that start by themselves: each has its own interpreter in memory


@contextmanager
def pool(jobs: int) -> Iterator[Executor | None]:
    """Provide an executor for several tasks at a time; None for one task at a time."""
    if jobs == 1:
        yield None
        return
    one_heap()
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="task")
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Provide the executor of a Dask cluster, whose workers need loramerge and the same files.

    Raises:
        MissingExtra: if Dask is not installed.
        UsageError: if no scheduler answers at the address.
    """
    try:
        import distributed
    except ImportError:
        raise MissingExtra(
            "a Dask cluster needs the package distributed", hint="pip install 'loramerge[dask]'"
        ) from None
    try:
        make: Any = distributed.Client
        client = make(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"no Dask scheduler answers at {address} ({error})") from None
    try:
        yield client.get_executor(pure=False)
    finally:
        client.close()


class Processes(Executor):
    """Processes of this machine, which start with the first work and end with this one.

    Attributes:
        count: of processes.
        least: bytes to compute from which the parts of a file are worth their start.
    """

    def __init__(self, count: int, least: int = 0) -> None:
        self.count, self.least = count, least
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit work. The processes that start with the first never hear Ctrl-C."""
        with deferred(insistent=False):
            if self._pool is None:
                with _held_back(), _apart():  # its queues start a process, and let Ctrl-C through
                    self._pool = _pool_of(self.count)
            with _held_back(), _apart():
                return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End when the work is done."""
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def stop(self) -> None:
        """End at once, whatever is computed; no work is taken any more."""
        processes = {} if self._pool is None else self._pool._processes or {}
        for process in list(processes.values()):
            process.terminate()
        self.shutdown()


def _pool_of(count: int) -> ProcessPoolExecutor:
    from multiprocessing import get_context

    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back some signals from this thread for a moment, and for good from what starts in it.

    A terminal sends them to all processes, of which this one alone shall answer, and end the others.
    No effect on Windows, where a process cannot inherit this.
    """
    import signal

    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:  # from here on, because an interruption may come while the call returns
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _apart() -> Iterator[None]:
    """Let processes that start run nothing but the modules that this one would import.

    Python puts the current folder first until it has heard where this process looks for modules: a file
    `random.py` there would be run. It also runs the script that runs here once more, of which nothing
    is needed; one without `if __name__ == "__main__"` would do its work again.
    """
    before, script = os.environ.get(_SAFE_PATH), sys.modules["__main__"]
    os.environ[_SAFE_PATH], sys.modules["__main__"] = "1", ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


def _begin() -> None:
    """Prepare a process that computes parts: it ends with its parent, which alone answers Ctrl-C."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def workers(
    jobs: int | None, dask: str | None, *, threads: int | None = None, least: int | None = None
) -> Iterator[Executor | None]:
    """Provide the executor of the parts of one checkpoint; None computes them in this process.

    Args:
        jobs: processes of this machine; None is one for each thread, but only where much is computed.
        dask: address of a Dask cluster instead.
        threads: that may work; None is one for each processor.
        least: bytes of a file to compute that are much; None never is.

    Raises:
        UsageError, MissingExtra: see `dask_executor`; or if both are given.
    """
    if dask is not None:
        if (jobs or 1) > 1:
            raise UsageError(
                "a Dask cluster has its own number of workers",
                hint=("leave out ", Setting("jobs"), " or ", Setting("dask")),
            )
        with dask_executor(dask) as cluster:
            yield cluster
        return
    count = jobs or (1 if least is None else min(_MOST, threads or available_cpus()))
    if count == 1:  # another process would only take its memory
        yield None
    else:
        with Processes(count, 0 if jobs else least or 0) as processes:
            yield processes

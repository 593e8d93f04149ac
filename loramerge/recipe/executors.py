"""Executors: of the tasks of a recipe, or of the parts of a checkpoint.

This thread, a pool of threads, processes of this machine, or a Dask cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import loramerge.stream.parts  # noqa: F401  # open files and families can be pickled from then on
from loramerge.algebra.workers import one_heap
from loramerge.errors import MissingExtra, Setting, UsageError

__all__ = ["dask_executor", "pool", "workers"]


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


@contextmanager
def workers(jobs: int, dask: str | None) -> Iterator[Executor | None]:
    """Provide the executor of the parts of one checkpoint; None computes them in this process.

    Args:
        jobs: processes of this machine.
        dask: address of a Dask cluster instead.

    Raises:
        UsageError, MissingExtra: see `dask_executor`; or if both are given.
    """
    if dask is not None:
        if jobs > 1:
            raise UsageError(
                "a Dask cluster has its own number of workers",
                hint=("leave out ", Setting("jobs"), " or ", Setting("dask")),
            )
        with dask_executor(dask) as cluster:
            yield cluster
    elif jobs == 1:
        yield None
    else:
        from multiprocessing import get_context

        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
            yield processes

"""Where tasks run: in this thread, in a pool of threads, or wherever `concurrent.futures` reaches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from loramerge.algebra.workers import one_heap
from loramerge.errors import MissingExtra, UsageError

__all__ = ["dask_executor", "pool"]


@contextmanager
def pool(jobs: int) -> Iterator[Executor | None]:
    """Give an executor for so many tasks at a time; None for one, which needs none."""
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
    """Give the executor of a Dask cluster; its workers need loramerge and the same files.

    Raises:
        MissingExtra: if Dask is not installed.
        UsageError: if no scheduler answers at the address.
    """
    try:
        import distributed
    except ImportError:
        raise MissingExtra("--dask needs Dask", hint="pip install 'loramerge[dask]'") from None
    try:
        make: Any = distributed.Client
        client = make(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"no Dask scheduler answers at {address} ({error})") from None
    try:
        yield client.get_executor(pure=False)
    finally:
        client.close()

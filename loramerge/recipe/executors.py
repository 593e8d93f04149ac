"""Executors of tasks: this thread, a pool of threads, or a Dask cluster.

An open file is pickled as its path, and a family as its name.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loramerge.algebra.workers import one_heap
from loramerge.errors import FileError, MissingExtra, UsageError
from loramerge.families import Family, family
from loramerge.files.reader import TensorFile

__all__ = ["dask_executor", "pool"]


def _opened(path: str, identity: tuple[int, int]) -> TensorFile:
    """Open a file that was open in another process.

    Raises:
        FileError: if it has changed since.
    """
    file = TensorFile(path)
    if file.identity[:2] != identity:
        raise FileError("the file changed after its header was read", file=path, hint="run again")
    return file


def _file_parts(file: TensorFile) -> tuple[Any, ...]:
    return _opened, (str(Path(file.path).absolute()), file.identity[:2])


def _family_parts(one: Family) -> tuple[Any, ...]:
    return family, (one.name,)


copyreg.pickle(TensorFile, _file_parts)
copyreg.pickle(Family, _family_parts)


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

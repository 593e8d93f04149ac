"""Compute parts of an output file in other processes, each of which writes at its own positions.

What travels is what to do: names of files, places in them, weights. The workers read the inputs and
write into the partial file themselves, so both must lie where all of them see the same file system;
only the figures of the report come back. Bytes do not depend on who computes a part, so a part may be
computed twice. An open file is pickled as its path, a family and an operator as their names.
"""

from __future__ import annotations

import copyreg
import pickle
import platform
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, wait
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from loramerge.algebra.operator import Operator
from loramerge.algebra.operators import OPERATORS, find_operator
from loramerge.algebra.workers import ordered, steady_heap
from loramerge.discovery import Named, Registry
from loramerge.errors import FileError, UsageError
from loramerge.families import FAMILIES, Family, family
from loramerge.files.forms import final_path
from loramerge.files.gguf import GgufFile
from loramerge.files.header import build_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import TensorFile
from loramerge.stream.walk import Buffers, Finding, Layout, WriteBehind, Written, tasks_of

__all__ = ["can_travel", "write_in_parts"]

_LEAST = 32 << 20  # bytes of a part
_MOST = 64  # parts of a file
_EACH_HAS_ITS_OWN = ("/dev/fd/", "/dev/std", "/proc/")  # another file in every process
_KEPT = 64  # files that a worker keeps open
_SENT = 64 << 20  # bytes of the parts of a file that may be sent by themselves
_BY_ITSELF = ContextVar("_BY_ITSELF", default=False)  # only what all processes have may be sent


def write_in_parts(
    layout: Layout[Finding],
    out: PositionedFile,
    written: Written,
    threads: int | None,
    *,
    executor: Executor,
) -> list[Finding]:
    """Fill a partial file by an executor; return the results of the tasks, in the order of tensors.

    Args:
        threads: of each part; None is one.
        executor: of processes or machines that have loramerge and see the same files.

    Raises:
        UsageError: if the work cannot be sent to other processes.
        FileError: if a worker is lost.
        LoramergeError: of a part.
    """
    path = str(Path(out.path).absolute())
    futures: list[Future[tuple[int, list[Finding]]]] = []
    try:
        for data in (_pickled(part, path, threads) for part in _parts(layout)):
            futures += [executor.submit(_compute, data, platform.node())]
        found: list[Finding] = []
        with WriteBehind(out) as behind:
            for future in futures:
                size, findings = future.result()
                found += findings
                written.add(size)
                behind.add(size)
    except BrokenExecutor as error:  # the pool ends all parts; one that is cancelled would stop it
        _end(executor, ())
        raise _lost(path, error) from None
    except BaseException as error:
        _end(executor, futures)
        of_dask = type(error).__module__.partition(".")[0] == "distributed"
        if of_dask or isinstance(error, CancelledError):
            raise _lost(path, error) from None
        raise
    return found


def _end(executor: Executor, futures: Iterable[Future[Any]]) -> None:
    """End the work on parts. Windows cannot remove a file while others write to it."""
    stop = getattr(executor, "stop", None)
    if stop is None:
        wait([future for future in futures if not future.cancel()])
    else:
        stop()


def can_travel(layout: Layout[Any]) -> bool:
    """Return whether other processes can compute a layout: all can be pickled, and little is sent.

    Tensors that are in memory, as those of a pickle are, travel by their values. Others would not know
    an operator or a family that is not installed, nor what is standard input here.
    """
    sent = 0
    before = _BY_ITSELF.set(True)
    try:
        for part in _parts(layout):  # an adapter that others cannot open may change few of them
            sent += len(_pickled(part, "", None))
            if sent > _SENT:
                return False
    except UsageError:
        return False
    finally:
        _BY_ITSELF.reset(before)
    return True


def _parts(layout: Layout[Finding]) -> Iterator[Layout[Finding]]:
    """Yield the layouts of neighbouring tensors that are computed together."""
    size = max(_LEAST, layout.size // _MOST)
    names: list[str] = []
    held = 0
    for name in layout.tensors:
        names.append(name)
        held += layout.infos[name].stop - layout.infos[name].start
        if held >= size:
            yield _part(layout, names)
            names, held = [], 0
    if names:
        yield _part(layout, names)


def _part(layout: Layout[Finding], names: list[str]) -> Layout[Finding]:
    return replace(
        layout,
        head=b"",
        rebuilt=build_header,
        metadata={},
        tensors={name: layout.tensors[name] for name in names},
        computed={name: layout.computed[name] for name in names if name in layout.computed},
    )


def _pickled(part: Layout[Any], path: str, threads: int | None) -> bytes:
    """Return a part as bytes.

    Raises:
        UsageError: if it holds something that lives in this process alone.
    """
    try:
        return pickle.dumps((part, path, threads))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            "this cannot be computed by other processes",
            found=str(error),
            hint="an input is a pickle, or an operator is not a function of a module; compute it in one "
            "process",
        ) from None


def _compute(data: bytes, sender: str) -> tuple[int, list[Any]]:
    """Compute a part where it was sent to; return the bytes that it wrote, and its results.

    Args:
        sender: name of the machine that puts the parts together.

    Raises:
        LoramergeError: if an input changed or is not here, or a result does not fit its type.
    """
    part, path, threads = pickle.loads(data)
    buffers, size = Buffers(), 0
    found: list[Any] = []
    steady_heap()
    with PositionedFile(path, "r+") as out:
        tasks = list(tasks_of(part, out))
        for task, findings in zip(
            tasks, ordered(lambda one: one.run(buffers), tasks, threads=threads or 1), strict=True
        ):
            size += task.size
            found += findings
        if platform.node() != sender:  # on one machine, who puts the parts together flushes them
            out.flush()
    return size, found


def _lost(path: str, error: BaseException) -> FileError:
    here = isinstance(error, BrokenExecutor)  # a pool of processes, most likely of this machine
    return FileError(
        "a worker that computed a part of the output is lost",
        file=final_path(path),  # the temporary name means nothing to whoever reads this
        found=str(error) or type(error).__name__,
        hint="nothing was written; run again"
        + ("; memory may have been short" if here else " when the workers are back"),
    )


# --- what is pickled by its name ---------------------------------------------------------------------


@lru_cache(maxsize=_KEPT)
def _opened(kind: type[TensorFile], path: str, identity: tuple[int, int]) -> TensorFile:
    """Open a file that was open in another process; a worker opens it once for all of its parts.

    Raises:
        FileError: if it has changed since.
    """
    file = kind(path)
    if file.identity[:2] != identity:
        raise FileError("the file changed after its header was read", file=path, hint="run again")
    return file


def _file_parts(file: TensorFile) -> tuple[Any, ...]:
    path = Path(file.path).absolute()
    if _BY_ITSELF.get() and path.as_posix().startswith(_EACH_HAS_ITS_OWN):
        raise pickle.PicklingError(f"{path} is another file in other processes")
    return _opened, (type(file), str(path), file.identity[:2])


def _require_installed(registry: Registry[Any], one: Named) -> None:
    """Refuse what this process alone has, where only what is installed may be sent."""
    if _BY_ITSELF.get() and not registry.is_installed(one):
        raise pickle.PicklingError(f"{one.name!r} is not of an installed package")


def _family_parts(one: Family) -> tuple[Any, ...]:
    _require_installed(FAMILIES, one)
    return family, (one.name,)


def _operator(name: str, code: str | None) -> Operator:
    """Return the operator of a name that was sent from another process.

    Raises:
        UsageError: if it is not known here, or its code is another.
    """
    try:
        found = find_operator(name)
    except UsageError:
        found = None
    if found is None or found.code != code:
        raise UsageError(
            f"the processes that compute the parts do not have the same operator {name!r}",
            hint="install it as a package where they run, or compute in one process",
        )
    return found


def _operator_parts(one: Operator) -> tuple[Any, ...]:
    _require_installed(OPERATORS, one)
    return _operator, (one.name, one.code)


copyreg.pickle(TensorFile, _file_parts)
copyreg.pickle(GgufFile, _file_parts)
copyreg.pickle(Family, _family_parts)
copyreg.pickle(Operator, _operator_parts)

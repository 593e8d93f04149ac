"""Write files of tensors, and small files, atomically.

A file of tensors has no header until all its data is in place, so that even a killed run leaves nothing
that looks whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from loramerge.files.atomic import AtomicFile, check_space, check_target
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import release
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = ["Build", "write_bytes", "write_tensors"]

# entries of tensors and metadata → the head of a file, and the places of the tensors; see `build_header`
Build = Callable[
    [Iterable[tuple[str, str, tuple[int, ...]]], Mapping[str, str]],
    tuple[bytes, dict[str, TensorInfo]],
]


def write_bytes(path: str | PathLike[str], data: bytes, *, force: bool = False) -> None:
    """Write a small file atomically."""
    with AtomicFile(path, force=force) as file:
        file.write(0, data)


def write_tensors(
    path: str | PathLike[str],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Path], None] | None = None,
    late: Sequence[Callable[[], Mapping[str, str]]] = (),
    build: Build = build_header,
) -> int:
    """Write a file of tensors atomically; they are laid out in the order given.

    Args:
        check: checks the whole file before it gets its name; if it raises, no file is left.
        late: give replacements for entries of `metadata`, of the same lengths, each in a thread of
            its own while the data is written and checked (digests, which take as long).
        build: makes the head of the file; that of safetensors files is the usual one.

    Returns:
        The size of the file in bytes.

    Raises:
        OutputExists: if the file exists and `force` is false.
    """
    from concurrent.futures import ThreadPoolExecutor  # costs an inspection 10 ms for nothing

    pairs = list(tensors)
    target = check_target(path, force=force)
    head, infos = build(((n, t.dtype, t.shape) for n, t in pairs), metadata)
    size = max((info.stop for info in infos.values()), default=len(head))
    check_space(target, size)
    with AtomicFile(target, force=force) as file, ThreadPoolExecutor(len(late) + 1) as pool:
        entries = [pool.submit(make) for make in late]
        _write_data(file, pairs, infos, progress)
        if check is not None:
            file.write(0, head)
            flushed = pool.submit(file.flush)  # the disk works while the file is looked at
            check(Path(file.path))
            release(file.path)
            flushed.result()
        if entries:
            merged = dict(metadata)
            for entry in entries:
                merged |= entry.result()
            final, _ = build(((n, t.dtype, t.shape) for n, t in pairs), merged)
            assert len(final) == len(head), "late entries must keep their lengths"
            head = final
        file.write(0, head)
    return size


def _write_data(
    file: PositionedFile,
    pairs: Sequence[tuple[str, Tensor]],
    infos: Mapping[str, TensorInfo],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write tensors at their places; tensors that are adjacent in a file are copied as one range."""
    run: tuple[PositionedFile, int, int, int] | None = None  # source, start, offset, count
    for done, (name, tensor) in enumerate(pairs, 1):
        offset, size = infos[name].start, tensor.nbytes
        if isinstance(tensor, StoredTensor):
            source, start = tensor.source, tensor.info.start
            if (
                run is not None
                and run[0] is source
                and run[1] + run[3] == start
                and run[2] + run[3] == offset
            ):
                run = (*run[:3], run[3] + size)
            else:
                _copy(file, run)
                run = (source, start, offset, size)
        else:
            _copy(file, run)
            run = None
            if size:
                file.write(offset, tensor.raw())
        if progress:
            progress(done, len(pairs))
    _copy(file, run)


def _copy(file: PositionedFile, run: tuple[PositionedFile, int, int, int] | None) -> None:
    if run is not None and run[3]:
        file.copy_from(*run)

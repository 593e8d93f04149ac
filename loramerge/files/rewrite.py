"""A new header before the same data: metadata is changed, tensors are copied as a range of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

from loramerge.files.atomic import AtomicFile, check_space
from loramerge.files.header import build_header
from loramerge.files.reader import TensorFile, release

__all__ = ["rewrite_header"]


def rewrite_header(
    source: TensorFile,
    target: str | PathLike[str],
    metadata: Mapping[str, str],
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> int:
    """Write a file with the data of another and other metadata, atomically; no tensor is loaded.

    The whole file is written beside the target and renamed, because a header of another length
    moves the data: nothing is ever patched in place.

    Args:
        target: may be the source itself.
        check: checks the whole file before it gets its name; if it raises, no file is left.

    Returns:
        The size of the file in bytes.

    Raises:
        OutputExists: if the target exists and `force` is false.
    """
    entries = [(i.name, i.dtype, i.shape) for i in source.header.tensors.values()]
    head, _ = build_header(entries, metadata)
    start = source.header.data_start
    count = source.size - start
    check_space(target, len(head) + count)
    with AtomicFile(target, force=force) as file:
        file.copy_from(source.handle(), start, len(head), count)
        file.write(0, head)
        if check is not None:
            check(Path(file.path))
            release(file.path)
    return len(head) + count

"""Copies of whole files and folders, byte for byte, that appear under their names when complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from loramerge.files.atomic import AtomicFile, AtomicFolder, Contents, check_space
from loramerge.files.positioned import PositionedFile

__all__ = ["copy_whole"]


def copy_whole(path: Path, files: Sequence[Path], target: Path, *, force: bool = False) -> None:
    """Copy what was given as a path: a folder, or a file with those that belong to it.

    Args:
        files: of a file, all that belong to it, itself included; they keep their names.
        target: name of the copy of `path`.

    Raises:
        OutputExists: if the copy would replace something and `force` is false.
    """
    if not path.is_dir():
        for file in dict.fromkeys((path, *files)):
            _copy(file, target.with_name(file.name), force=force)
        return
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    names = [file.relative_to(path) for file in inside]
    contents = Contents(
        "a copy of it", {PurePosixPath(name.as_posix()) for name in names}.__contains__
    )
    with AtomicFolder(target, force=force, contents=contents) as folder:
        for file, name in zip(inside, names, strict=True):
            _copy(file, folder / name, force=False)


def _copy(file: Path, target: Path, *, force: bool) -> None:
    size = file.stat().st_size
    check_space(target, size)
    with PositionedFile(file) as source, AtomicFile(target, force=force) as copy:
        copy.copy_from(source, 0, 0, size)

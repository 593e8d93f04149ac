"""Temporary files and folders beside outputs: their names, and their removal whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loramerge.files.forms import PARTIAL
from loramerge.interruption import deferred

__all__ = [
    "REPLACED", "beside", "discard", "remove_abandoned", "remove_folder", "remove_unfinished",
    "scratch_folder",
]  # fmt: skip

REPLACED = ".replaced"  # not swept: for a moment it is the only copy of the old folder
_swept: set[Path] = set()
_unfinished: set[Path] = set()  # names that this process took, until nothing has them any more


def _mark(process: int) -> str:
    """Return the mark of a temporary file: the machine and the process that it belongs to."""
    import zlib

    machine = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(machine.encode()):08x}-{process}"


def beside(target: Path, ending: str) -> Path:
    """Return a new name for something temporary beside the target, short enough everywhere.

    `discard` it at last.
    """
    stem = os.fsencode(target.name)[:80].decode("utf-8", "ignore")
    path = target.with_name(f".{stem}.{_mark(os.getpid())}-{os.urandom(5).hex()}{ending}")
    if ending == PARTIAL:
        _unfinished.add(path)
    return path


def discard(path: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
    _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove what an interruption has left of this process' temporary files and folders.

    An interruption comes between any two lines, so also before a block that would remove them is
    entered. Nothing may be written meanwhile.
    """
    with deferred(insistent=False):
        for path in list(_unfinished):
            with suppress(OSError):
                discard(path)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left beside outputs, once for each folder."""
    if os.name != "posix" or folder in _swept:
        return  # elsewhere it cannot be asked whether a process lives without touching it
    _swept.add(folder)
    here = _mark(0)[:-1]
    for path in folder.glob(f".*{PARTIAL}"):
        mark = path.name[: -len(PARTIAL)].rpartition(".")[2]
        process = mark.removeprefix(here).partition("-")[0]
        if mark.startswith(here) and process.isdigit() and not _lives(int(process)):
            discard(path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and belongs to somebody else
        return True
    return True


def remove_folder(folder: Path) -> None:
    """Remove a folder with all it holds, if it is there."""
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Provide a folder in the system's temporary one, and remove those that killed processes left."""
    from tempfile import gettempdir

    parent = Path(gettempdir())
    remove_abandoned(parent)
    folder = beside(parent / name, PARTIAL)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        discard(folder)

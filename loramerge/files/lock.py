"""A lock between processes, for the few files that are read, changed and written again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from loramerge.errors import FileError

__all__ = ["locked"]

_PATIENCE = 30.0  # seconds to wait for another process; a change takes milliseconds
_STALE = 10.0  # seconds after which a file that marks a lock was left by a killed process
_PAUSE = 0.01


@contextmanager
def locked(path: str | PathLike[str], patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the lock of a file; others that want to change it wait.

    The system holds the lock on `NAME.lock` beside the file and lets go of it when the process ends,
    however that happens. Where the system or the disk has no such locks, `NAME.locked` marks it, and
    one that was left by a killed process counts no longer after ten seconds.

    Args:
        patience: seconds to wait for another process.

    Raises:
        FileError: if the file's folder cannot be written, or another process does not let go.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place.with_name(f"{place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(f"cannot be changed: {error.strerror}", file=place) from None
    try:
        if _wait(place, lambda: _system_lock(descriptor), patience):
            yield
            return
        mark = place.with_name(f"{place.name}.locked")
        _wait(place, lambda: _marked(mark), patience)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)
    finally:
        os.close(descriptor)  # which lets go of the lock


def _wait(place: Path, attempt: Callable[[], bool | None], patience: float) -> bool:
    """Repeat an attempt until it succeeds; None from it means that another process has the lock.

    Raises:
        FileError: if that does not change.
    """
    deadline = time.monotonic() + patience
    while (found := attempt()) is None:
        if time.monotonic() > deadline:
            raise FileError(
                "another process is changing this file", file=place, hint="run again later"
            )
        time.sleep(_PAUSE)
    return found


def _system_lock(descriptor: int) -> bool | None:
    """Return whether the system gave the lock; False if it has none to give, None if it is taken."""
    try:
        import fcntl
    except ImportError:
        return _windows_lock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # some network file systems
        return False
    return True


def _windows_lock(descriptor: int) -> bool | None:
    try:
        import msvcrt
    except ImportError:
        return False
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        return None
    except OSError:
        return False
    return True


def _marked(mark: Path) -> bool | None:
    """Return True if the mark was made here, None if another process has made it."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        with suppress(OSError):
            if time.time() - mark.stat().st_mtime > _STALE:
                mark.unlink(missing_ok=True)
        return None
    except PermissionError:  # Windows, while it is being removed
        return None
    return True

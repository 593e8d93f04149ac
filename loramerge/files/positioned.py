"""Reading, writing and copying at byte positions, on every system.

POSIX has `pread`/`pwrite` (no shared position, so threads need no lock) and Linux can copy ranges
inside the kernel; elsewhere a lock around seek + read gives the same result.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from loramerge.errors import CorruptFile, DiskFull, FileError, MissingFile
from loramerge.files.forms import final_path

__all__ = ["COPY_BLOCK", "PositionedFile", "refuse_irregular"]

COPY_BLOCK = 8 << 20  # bytes per kernel copy, so that interruption is noticed soon
_PLAIN_BLOCK = 1 << 20
_NO_RANGE_COPY = frozenset({"EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EPERM", "EBADF"})


class PositionedFile:
    """A file opened for positioned access. Safe to use from several threads.

    Args:
        path: the file.
        mode: `"r"` to read an existing file, `"r+"` to write into one, too, `"x"` to create one for
            both.
    """

    def __init__(self, path: str | PathLike[str], mode: str = "r") -> None:
        self.path = os.fspath(path)
        if mode == "r":
            refuse_irregular(self.path)
        flags = os.O_RDONLY if mode == "r" else os.O_RDWR
        flags |= os.O_CREAT | os.O_EXCL if mode == "x" else 0
        flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._descriptor = os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            if mode == "x":
                raise FileError("cannot create the file here", file=self.path) from None
            raise MissingFile("no such file", file=self.path) from None
        except OSError as error:
            raise FileError(f"cannot open: {error.strerror}", file=self.path) from None
        self._lock = threading.Lock()
        # The kernel lets one thread write to a file at a time and makes the others spin; waiting
        # here instead leaves them the processor.
        self._write_lock = threading.Lock()
        self._range_copy = hasattr(os, "copy_file_range")
        self._pinned: tuple[int, int, int] | None = None

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._descriptor >= 0:
            # forgotten first: an interruption in between must not let the number be closed twice
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __enter__(self) -> PositionedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self._descriptor).st_size

    def identity(self) -> tuple[int, int, int]:
        """Return (size, mtime_ns, inode), which change when the file is replaced or edited."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ino

    def pin(self) -> tuple[int, int, int]:
        """Refuse reads after the file has been edited from now on; return its identity."""
        self._pinned = self.identity()
        return self._pinned

    def check_unchanged(self) -> None:
        """Refuse the bytes just read if the file was pinned and has been edited since.

        Raises:
            FileError: if so; what was read may be half old and half new.
        """
        if self._pinned is None or (now := self.identity()) == self._pinned:
            return
        if now[0] < self._pinned[0]:
            raise CorruptFile("the file became shorter while it was read", file=self.path)
        raise FileError("the file changed while it was read", file=self.path, hint="run again")

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes from `offset`.

        Raises:
            CorruptFile: if the file ends before that.
            FileError: see `check_unchanged`.
        """
        if hasattr(os, "pread"):
            data = os.pread(self._descriptor, count, offset)
            if len(data) == count:  # nearly always; a file that is too short is said below
                self.check_unchanged()
                return data
        buffer = bytearray(count)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_each(self, places: Iterable[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (offset, count): as many calls of `read`, with one check after all.

        Raises:
            CorruptFile, FileError: see `read`.
        """
        if not hasattr(os, "pread"):
            return [self.read(offset, count) for offset, count in places]
        wanted = list(places)
        found = [os.pread(self._descriptor, count, offset) for offset, count in wanted]
        if any(len(data) < count for data, (_, count) in zip(found, wanted, strict=True)):
            return [self.read(offset, count) for offset, count in wanted]  # says what is wrong
        self.check_unchanged()
        return found

    def expect(self, offset: int, count: int) -> None:
        """Tell the system that bytes will be read soon, where it can be told.

        Threads that read at several places of a file keep it from seeing what comes next.
        """
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_WILLNEED)

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill a writable buffer from `offset`.

        Raises:
            CorruptFile: if the file ends before the buffer is full.
            FileError: see `check_unchanged`.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = self._read_some(offset + done, view[done:])
            if count == 0:
                raise CorruptFile("the file became shorter while it was read", file=self.path)
            done += count
        self.check_unchanged()

    def _read_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        if hasattr(os, "pread"):  # macOS before preadv
            data = os.pread(self._descriptor, len(view), offset)
        else:
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, offset: int, data: Any) -> None:
        """Write all bytes of a buffer at `offset`."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            with self._write_lock:
                while done < len(view):
                    done += self._write_some(offset + done, view[done:])
        except OSError as error:
            raise _write_error(error, self.path) from None

    def _write_some(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._descriptor, view, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.write(self._descriptor, view)

    def copy_from(self, source: PositionedFile, start: int, offset: int, count: int) -> None:
        """Copy `count` bytes at `start` of `source` to `offset` here, in the kernel if it can."""
        try:
            while count and self._range_copy:
                try:
                    with self._write_lock:
                        copied = os.copy_file_range(
                            source._descriptor,
                            self._descriptor,
                            min(count, COPY_BLOCK),
                            start,
                            offset,
                        )
                except OSError as error:
                    import errno

                    if errno.errorcode.get(error.errno or 0) not in _NO_RANGE_COPY:
                        raise
                    self._range_copy = False
                    break
                if copied == 0:
                    raise CorruptFile("the file became shorter while it was read", file=source.path)
                start, offset, count = start + copied, offset + copied, count - copied
        except OSError as error:
            raise _write_error(error, self.path) from None
        source.check_unchanged()
        buffer = memoryview(bytearray(min(count, _PLAIN_BLOCK)))
        while count:
            part = buffer[: min(count, len(buffer))]
            source.read_into(start, part)
            self.write(offset, part)
            start, offset, count = start + len(part), offset + len(part), count - len(part)

    def resize(self, size: int) -> None:
        """Set the size of the file, so that it is known early whether the disk has room."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise _write_error(error, self.path) from None

    def flush(self) -> None:
        """Flush everything written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _write_error(error, self.path) from None


def refuse_irregular(path: str | PathLike[str]) -> None:
    """Refuse a pipe, device or socket before it is opened: opening may wait, reading never ends.

    Raises:
        FileError: naming what it is.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it says why it cannot
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise FileError(
            f"expected a file, found {_IRREGULAR.get(stat.S_IFMT(mode), 'something else')}",
            file=path,
            hint="write its content to a file, and give that",
        )


_IRREGULAR = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _write_error(error: OSError, path: str) -> FileError:
    import errno

    place = final_path(path)  # the temporary name means nothing to whoever reads this
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DiskFull("the disk is full", file=place, hint="free some space and run again")
    return FileError(f"cannot write: {error.strerror}", file=place)

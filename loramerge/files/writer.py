"""Atomic writing: a temporary file beside the target, flushed to disk, then renamed.

Whatever happens before the rename, the target is untouched; the temporary file has no header until
all its data is in place, so even a killed run leaves nothing that looks whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from loramerge.errors import DiskFull, FileError, OutputExists
from loramerge.files.header import TensorInfo, build_header
from loramerge.files.positioned import PositionedFile
from loramerge.files.reader import release
from loramerge.files.tensors import StoredTensor, Tensor

__all__ = [
    "AtomicFile",
    "AtomicFolder",
    "check_space",
    "check_target",
    "write_bytes",
    "write_tensors",
]

_RENAME_TRIES = 6
_PARTIAL = ".partial"
_swept: set[Path] = set()


def check_target(path: str | PathLike[str], *, force: bool) -> Path:
    """Return the output path, or refuse an existing one without `force`; creates no folder.

    Raises:
        OutputExists: if it exists.
        FileError: if the path names an existing thing of the other sort.
    """
    target = Path(path)
    if target.exists() and not force:
        raise OutputExists(
            "the output exists", file=target, hint="give --force to replace it, or another -o"
        )
    return target


def check_space(path: str | PathLike[str], size: int) -> None:
    """Refuse early if the disk of `path` has fewer than `size` bytes free."""
    from shutil import disk_usage  # costs an inspection 3 ms for nothing if imported above

    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = disk_usage(folder).free
    if free < size:
        raise DiskFull(
            "not enough room for the output",
            file=path,
            expected=f"{size / 1e6:.1f} MB",
            found=f"{free / 1e6:.1f} MB free",
            hint="free some room or write to another disk with -o",
        )


def _mark(process: int) -> str:
    """Return what tells whose a temporary file is: the machine, and the process on it."""
    import zlib

    machine = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return f"{zlib.crc32(machine.encode()):08x}-{process}"


def _partial(target: Path) -> Path:
    """Return a new name for a temporary file beside the target, short enough for every system."""
    stem = os.fsencode(target.name)[:80].decode("utf-8", "ignore")
    unique = f"{time.monotonic_ns() & 0xFFFFFF:06x}"
    return target.with_name(f".{stem}.{_mark(os.getpid())}-{unique}{_PARTIAL}")


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files that killed processes of this machine left, once for each folder."""
    if os.name != "posix" or folder in _swept:
        return  # elsewhere it cannot be asked whether a process lives without touching it
    _swept.add(folder)
    here = _mark(0)[:-1]
    for path in folder.glob(f".*{_PARTIAL}"):
        mark = path.name[: -len(_PARTIAL)].rpartition(".")[2]
        process = mark.removeprefix(here).partition("-")[0]
        if mark.startswith(here) and process.isdigit() and not _lives(int(process)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and belongs to somebody else
        return True
    return True


def _rename(source: Path, target: Path) -> None:
    """Replace `target`, retrying briefly where another program holds it (Windows)."""
    for attempt in range(_RENAME_TRIES):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == _RENAME_TRIES - 1:
                raise FileError(
                    "cannot replace the file: another program holds it open",
                    file=target,
                    hint="close that program and run again",
                ) from None
            time.sleep(0.05 * 2**attempt)
        except OSError as error:
            raise FileError(f"cannot rename: {error.strerror}", file=target) from None


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse; the rename is still atomic
        pass
    finally:
        os.close(descriptor)


class AtomicFile:
    """A file that appears under its name only when complete.

    Use as a context manager: on a normal exit it is flushed and renamed, on an exception removed.
    """

    def __init__(self, path: str | PathLike[str], *, force: bool = False) -> None:
        self.target = check_target(path, force=force)
        if self.target.is_dir():
            raise FileError("the output is an existing folder", file=self.target)
        self._force = force
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"cannot make the folder: {error.strerror}", file=self.target.parent
            ) from None
        _remove_abandoned(self.target.parent.absolute())
        self._temporary = _partial(self.target)
        self.file = PositionedFile(self._temporary, "x")

    def __enter__(self) -> PositionedFile:
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.file.flush()
                self.file.close()
                check_target(self.target, force=self._force)
                release(self.target)
                _rename(self._temporary, self.target)
                _flush_folder(self.target.parent)
        finally:
            self.file.close()
            self._temporary.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    """Remove a folder with all it holds, if it is there."""
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)


class AtomicFolder:
    """A folder built as `NAME.partial` and renamed when complete."""

    def __init__(self, path: str | PathLike[str], *, force: bool = False) -> None:
        self.target = check_target(path, force=force)
        if self.target.exists() and not self.target.is_dir():
            raise FileError("the output is an existing file, expected a folder", file=self.target)
        self.partial = self.target.with_name(self.target.name + ".partial")

    def __enter__(self) -> Path:
        try:
            if self.partial.exists():
                _remove_folder(self.partial)  # left by a killed run
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise FileError(
                f"cannot make the folder: {error.strerror}", file=self.partial
            ) from None
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self.target.exists():
                    for path in self.target.rglob("*"):
                        release(path)
                    self._replace()
                else:
                    _rename(self.partial, self.target)
                _flush_folder(self.target.parent)
        finally:
            _remove_folder(self.partial)

    def _replace(self) -> None:
        """Put the new folder in the place of the old one, or the old one back."""
        old = self.target.with_name(self.target.name + ".old.partial")
        _remove_folder(old)  # left by a killed run
        _rename(self.target, old)
        try:
            _rename(self.partial, self.target)
        except BaseException:
            _rename(old, self.target)
            raise
        _remove_folder(old)


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
) -> int:
    """Write a safetensors file atomically; tensors are laid out in the order given.

    Args:
        check: looks at the whole file before it gets its name; what it raises leaves no file.
        late: give replacements for entries of `metadata`, of the same lengths, each in a thread of
            its own while the data is written and checked (digests, which take as long).

    Returns:
        The size of the file in bytes.

    Raises:
        OutputExists: if the file exists and `force` is false.
    """
    from concurrent.futures import ThreadPoolExecutor  # costs an inspection 10 ms for nothing

    pairs = list(tensors)
    target = check_target(path, force=force)
    head, infos = build_header(((n, t.dtype, t.shape) for n, t in pairs), metadata)
    size = len(head) + sum(tensor.nbytes for _, tensor in pairs)
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
            final, _ = build_header(((n, t.dtype, t.shape) for n, t in pairs), merged)
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
    """Write tensors at their places; what lies together in a file is copied as one range."""
    run: tuple[PositionedFile, int, int, int] | None = None  # source, start, offset, count
    for done, (name, tensor) in enumerate(pairs, 1):
        offset, size = infos[name].start, tensor.nbytes
        if isinstance(tensor, StoredTensor):
            source, start = tensor.source, tensor.info.start
            if run is not None and run[0] is source and run[1] + run[3] == start:
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

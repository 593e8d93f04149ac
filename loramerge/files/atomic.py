"""Atomic files and folders: a temporary one beside the target, flushed to disk, then renamed.

Whatever happens before the rename, the target is untouched.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path, PurePosixPath

from loramerge.errors import DiskFull, FileError, OutputExists, Setting
from loramerge.files.forms import PARTIAL
from loramerge.files.positioned import PositionedFile, refuse_irregular
from loramerge.files.reader import release
from loramerge.files.temporary import REPLACED, beside, discard, remove_abandoned, remove_folder
from loramerge.interruption import deferred
from loramerge.records import record

__all__ = [
    "AtomicFile", "AtomicFolder", "Contents", "check_contents", "check_space", "check_target", "claim",
    "flush_folder", "keep_mode", "may_be_in_name", "rename",
]  # fmt: skip

_RENAME_TRIES = 6
_WRITERS = 50  # of one folder at the same moment


def may_be_in_name(character: str) -> bool:
    """Return whether names of new files may have a character: no control, no unpaired surrogate."""
    return unicodedata.category(character) not in ("Cc", "Cs")


def check_target(
    path: str | PathLike[str], *, force: bool, option: Setting = Setting("output")
) -> Path:
    """Return the output path, or refuse an existing one without `force`; creates no folder.

    Args:
        option: the one that names the path.

    Raises:
        OutputExists: if it exists.
        FileError: if no file should have such a name: with control characters, or half of a
            surrogate pair.
    """
    target = Path(path)
    if not target.exists():
        odd = next((character for character in target.name if not may_be_in_name(character)), None)
        if odd is not None:
            raise FileError(
                "the name of the output has a character that names of files should not have",
                file=target,
                found=ascii(odd),
                hint=("give another ", option),
            )
    elif not force:
        raise OutputExists(
            "the output exists",
            file=target,
            hint=(
                "to replace it, give ",
                Setting("force", True),
                "; or give another ",
                option,
            ),
        )
    return target


@record
class Contents:
    """The files that a folder of some sort holds, and that replacing it may therefore remove.

    Args:
        what: the sort, as errors name it.
        known: tells whether a path below the folder is that of such a file.
    """

    what: str
    known: Callable[[PurePosixPath], bool]


def check_contents(folder: Path, contents: Contents) -> None:
    """Refuse to replace a folder that holds files of another sort.

    Raises:
        OutputExists: naming the first of them.
    """
    for path in sorted(folder.rglob("*")):
        relative = PurePosixPath(path.relative_to(folder).as_posix())
        if (path.is_symlink() or not path.is_dir()) and not contents.known(relative):
            raise OutputExists(
                f"the folder holds other things than {contents.what}, "
                "and replacing it would remove them",
                file=folder,
                found=str(relative),
                hint=("give another ", Setting("output")),
            )


def check_space(path: str | PathLike[str], size: int) -> None:
    """Refuse early if the disk of `path` has fewer than `size` bytes free."""
    from shutil import disk_usage  # costs an inspection 3 ms for nothing if imported above

    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = disk_usage(folder).free
    if free < size:
        raise DiskFull(
            "not enough free space for the output",
            file=path,
            expected=f"{size / 1e6:.1f} MB",
            found=f"{free / 1e6:.1f} MB free",
            hint=("free some space, or write to another disk with ", Setting("output")),
        )


def rename(source: Path, target: Path) -> None:
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


def claim(source: Path, target: Path) -> None:
    """Give a file a name that nothing has; of several processes that do, one succeeds.

    Where the file system has no hard links, another process may come between looking and renaming.

    Raises:
        OutputExists: if something has the name.
        FileError: if the file cannot be given the name.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        check_target(target, force=False)
        raise FileError("cannot rename: a broken link has this name", file=target) from None
    except (OSError, NotImplementedError):
        check_target(target, force=False)
        rename(source, target)


def flush_folder(folder: Path) -> None:
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


def _followed(target: Path) -> Path:
    """Return the path that a link leads to, so that writing to it keeps the link."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def keep_mode(old: Path, new: Path) -> None:
    """Give a replacement the permissions of the replaced file, and its owner if allowed."""
    try:
        status = old.stat()
    except OSError:
        return  # there was none
    with suppress(OSError):
        if hasattr(os, "chown"):
            os.chown(new, status.st_uid, status.st_gid)
    with suppress(OSError):
        new.chmod(stat.S_IMODE(status.st_mode))


class AtomicFile:
    """A file that appears under its name only when complete.

    Use as a context manager: on a normal exit it is flushed and renamed, on an exception removed.
    What it replaces keeps its permissions, and a link stays one. Of several writers of one file one wins
    whole: without `force` the first, and the others are told; with it the last.

    Raises:
        OutputExists: see `check_target`.
        FileError: if the target is a folder, device or pipe, or its folder cannot be made.
    """

    def __init__(self, path: str | PathLike[str], *, force: bool = False) -> None:
        self.target = _followed(check_target(path, force=force))
        if self.target.is_dir():
            raise FileError("the output is an existing folder", file=self.target)
        refuse_irregular(self.target)
        self._force = force
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"cannot make the folder: {error.strerror}", file=self.target.parent
            ) from None
        remove_abandoned(self.target.parent.absolute())
        self._temporary = beside(self.target, PARTIAL)
        self.file = PositionedFile(self._temporary, "x")

    def __enter__(self) -> PositionedFile:
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.file.flush()
                self.file.close()
                release(self.target)
                keep_mode(self.target, self._temporary)
                (rename if self._force else claim)(self._temporary, self.target)
                flush_folder(self.target.parent)
        finally:
            self.file.close()
            discard(self._temporary)


class AtomicFolder:
    """A folder built under a temporary name beside the target and renamed when complete.

    Of several writers of one folder one wins whole: without `force` the first, with it the last.

    Args:
        contents: the files that an old folder may hold; one with others is never replaced.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        force: bool = False,
        contents: Contents | None = None,
    ) -> None:
        self.target = _followed(check_target(path, force=force))
        if self.target.exists() and not self.target.is_dir():
            raise FileError("the output is an existing file, expected a folder", file=self.target)
        self._force, self._contents = force, contents
        self._check_contents()
        self.partial = beside(self.target, PARTIAL)

    def __enter__(self) -> Path:
        parent = self.target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent.absolute())
            self.partial.mkdir()
        except OSError as error:
            raise FileError(f"cannot make the folder: {error.strerror}", file=self.target) from None
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                keep_mode(self.target, self.partial)
                with deferred(insistent=False):
                    self._place()
                flush_folder(self.target.parent)
        finally:
            discard(self.partial)

    def _place(self) -> None:
        """Replace the old folder by the new one, or restore the old one.

        Raises:
            OutputExists: without `force`, if a folder has appeared there meanwhile.
            FileError: if the folder cannot be renamed.
        """
        for attempt in range(_WRITERS):
            check_target(self.target, force=self._force)
            old = self._move_away() if self._force else None
            try:
                rename(self.partial, self.target)
                placed = True
            except BaseException as error:
                placed = False
                taken = isinstance(error.__context__, OSError) and (
                    error.__context__.errno in (errno.ENOTEMPTY, errno.EEXIST)
                )
                if not taken and not self.target.exists():
                    if old is not None:
                        rename(old, self.target)
                    raise
                if attempt == _WRITERS - 1:
                    raise
            if old is not None:
                remove_folder(old)
            if placed:
                return

    def _check_contents(self) -> None:
        if self._contents is not None and self.target.is_dir():
            check_contents(self.target, self._contents)

    def _move_away(self) -> Path | None:
        """Rename the old folder; return its new name, None if there is no old folder."""
        if not self.target.exists():
            return None
        try:
            self._check_contents()
            for path in self.target.rglob("*"):
                release(path)
        except FileNotFoundError:
            return None  # another writer was faster
        old = beside(self.target, REPLACED)
        try:
            rename(self.target, old)
        except FileError as error:
            if not isinstance(error.__context__, FileNotFoundError):
                raise
            return None  # another writer was faster
        return old

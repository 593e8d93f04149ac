"""Several files that are one result: all of them appear, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loramerge.errors import FileError
from loramerge.files.atomic import check_target, claim, flush_folder, keep_mode, rename
from loramerge.files.forms import PARTIAL
from loramerge.files.positioned import refuse_irregular
from loramerge.files.temporary import REPLACED, beside, discard, remove_abandoned
from loramerge.interruption import deferred

__all__ = ["AtomicFiles"]


class AtomicFiles:
    """Files of one folder, built in a temporary folder beside them and renamed when all are complete.

    Use as a context manager, which gives the temporary folder: on a normal exit each file in it is
    flushed and renamed, on an exception nothing has changed. The first target appears last and
    disappears first, so that a process killed between two renames leaves a result without the file
    that names it.

    Args:
        targets: every file of the result, in one folder; the first names the result.
        stale: files that an older result had and this one does not have; they are removed.

    Raises:
        OutputExists: if one of them exists and `force` is false.
        FileError: if one is not a file, or cannot be renamed.
    """

    def __init__(
        self, targets: Sequence[Path], *, force: bool = False, stale: Sequence[Path] = ()
    ) -> None:
        self.targets, self.stale, self._force = targets, stale, force
        self._check()
        self.partial = beside(targets[0], PARTIAL)

    def __enter__(self) -> Path:
        parent = self.targets[0].parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent.absolute())
            self.partial.mkdir()
        except OSError as error:
            raise FileError(f"cannot make the folder: {error.strerror}", file=parent) from None
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check()
                with deferred(insistent=False):
                    self._place()
                flush_folder(self.targets[0].parent)
        finally:
            discard(self.partial)

    def _check(self) -> None:
        for path in (*self.targets, *self.stale):
            check_target(path, force=self._force)
            refuse_irregular(path)
            if path.is_dir():
                raise FileError("the output is an existing folder", file=path)

    def _place(self) -> None:
        """Rename every file, or restore the former files."""
        old = {path: beside(path, REPLACED) for path in (*self.targets, *self.stale)}
        moved: list[Path] = []
        placed: list[Path] = []
        try:
            for path in self.targets:
                keep_mode(path, self.partial / path.name)
            for path in old if self._force else ():
                if path.exists():
                    rename(path, old[path])
                    moved.append(path)
            for path in reversed(self.targets):
                (rename if self._force else claim)(self.partial / path.name, path)
                placed.append(path)
        except BaseException:
            for path in reversed(placed):
                path.unlink(missing_ok=True)
            for path in reversed(moved):
                rename(old[path], path)
            raise
        for path in moved:
            old[path].unlink(missing_ok=True)

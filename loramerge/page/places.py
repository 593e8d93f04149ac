"""The files that the page may read and write: those in a few folders, links followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loramerge.errors import UsageError
from loramerge.library.index import has_index, open_index
from loramerge.library.lookup import below
from loramerge.library.registry import expanded, load_registry
from loramerge.library.shipped import shipped_name, shipped_places

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """The current folder, what was opened on the command line, the library and the registered bases.

    Args:
        folder: the current folder, where relative paths start and results land.
        opened: files and folders given on the command line.
    """

    folder: Path
    opened: tuple[Path, ...] = ()

    def roots(self) -> list[Path]:
        """Return the folders and files, each once, with links followed; the current folder first."""
        found = (Path(os.path.realpath(place)) for place in self._all())
        return list(dict.fromkeys(found))

    def _all(self) -> Iterator[Path]:
        yield self.folder
        yield from self.opened
        registry = load_registry()
        yield from (Path(folder.path) for folder in registry.folders)
        yield from (Path(path) for path in registry.bases.values())
        yield from shipped_places()
        if has_index():
            with open_index(create=False) as index:
                yield from (
                    Path(root) for (root,) in index.rows("SELECT DISTINCT root FROM places")
                )

    def allowed(self, path: str | Path) -> Path:
        """Return a path, relative ones from the current folder, if the page may use it.

        Raises:
            UsageError: if it leads elsewhere. It is the same whether the path exists or not.
        """
        try:
            place = below(self.folder, os.fspath(expanded(path)))
            real = os.path.realpath(place)
        except (OSError, ValueError):  # a name that no file can have
            raise self._refusal(path) from None
        if any(_is_inside(real, os.fspath(root)) for root in self.roots()):
            return place
        raise self._refusal(path)

    def reference(self, path: Path) -> str:
        """Return the shortest text that names a file in an action: a shipped name, or a path."""
        shipped = shipped_name(str(path))
        if shipped is not None:
            return shipped
        try:
            return path.relative_to(self.folder).as_posix()
        except ValueError:
            return str(path)

    def _refusal(self, path: object) -> UsageError:
        return UsageError(
            "the page may not use this path",
            found=repr(os.fspath(path) if isinstance(path, Path) else path),
            expected="a path in the current folder, the library, or what `loramerge ui` was given",
            hint="loramerge library add FOLDER, or start it as loramerge ui FOLDER",
        )


def _is_inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # another drive
        return False

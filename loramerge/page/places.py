"""The files that the page may read and write: those in a few folders, links followed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loramerge.errors import LoramergeError, UsageError
from loramerge.files.atomic import may_be_in_name
from loramerge.library.index import has_index, open_index
from loramerge.library.paths import below
from loramerge.library.registry import expanded, load_registry
from loramerge.library.shipped import shipped_name, shipped_places

__all__ = ["Places", "is_folder"]


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
        found = (Path(os.path.realpath(place)) for place in (*self._own(), *shipped_places()))
        return list(dict.fromkeys(found))

    def _own(self) -> Iterator[Path]:
        """Yield what belongs to the user, and not to the installed package."""
        yield self.folder
        yield from self.opened
        registry = load_registry()
        yield from (Path(folder.path) for folder in registry.folders)
        yield from (Path(path) for path in registry.bases.values())
        if has_index():
            with open_index(create=False) as index:
                yield from (
                    Path(root) for (root,) in index.rows("SELECT DISTINCT root FROM places")
                )

    def allowed(self, path: str | Path) -> Path:
        """Return a path, relative ones from the current folder, if the page may read it.

        Raises:
            UsageError: if it leads elsewhere. It is the same whether the path exists or not.
        """
        place = self._place(path)
        self.check([place], self.roots())
        return place

    def check(self, paths: Sequence[Path], roots: Sequence[Path] | None = None) -> None:
        """Refuse paths that lead elsewhere, asking for the places once.

        Raises:
            UsageError: naming the first.
        """
        texts = [os.fspath(root) for root in (self.roots() if roots is None else roots)]
        for path in paths:
            if not self._lies_in(path, texts):
                raise self._refusal(path)

    def check_contents(self, paths: Sequence[Path]) -> None:
        """Refuse folders in which a link leads elsewhere, such as a caption that is a link to a secret.

        A registered base may hold any: whoever registered it chose it as it is.

        Raises:
            UsageError: naming the first link.
        """
        chosen = {os.path.realpath(path) for path in load_registry().bases.values()}
        roots = self.roots()
        for path in paths:
            if os.path.realpath(path) not in chosen:
                for link in _links(path):
                    self.check([link], roots)

    def inside(self, paths: Sequence[Path]) -> list[Path]:
        """Return those of the paths that the page may read."""
        texts = [os.fspath(root) for root in self.roots()]
        return [path for path in paths if self._lies_in(path, texts)]

    def writable(self, path: str | Path) -> Path:
        """Return a path, relative ones from the current folder, if the page may write it.

        What comes with loramerge can be read only.

        Raises:
            UsageError: if it leads elsewhere, or no new file should have its name.
        """
        place = self._place(path)
        if not all(map(may_be_in_name, str(place))):
            raise UsageError("this cannot be the name of a file", found=ascii(str(path)))
        self.check([place], [Path(os.path.realpath(one)) for one in self._own()])
        return place

    def reference(self, path: Path) -> str:
        """Return the shortest text that names a file in an action: a shipped name, or a path."""
        shipped = shipped_name(str(path))
        if shipped is not None:
            return shipped
        try:
            return path.relative_to(self.folder).as_posix()
        except ValueError:
            return str(path)

    def _place(self, path: str | Path) -> Path:
        """Return a path as the engine reads it.

        Raises:
            UsageError: if no file can have such a name.
        """
        try:
            place = below(self.folder, os.fspath(expanded(path)))
            os.path.realpath(place)
        except (LoramergeError, OSError, ValueError):
            raise self._refusal(path) from None
        return place

    def _lies_in(self, path: Path, roots: Sequence[str]) -> bool:
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError):
            return False
        return any(_is_inside(real, root) for root in roots)

    def _refusal(self, path: object) -> UsageError:
        return UsageError(
            "the page may not use this path",
            found=ascii(os.fspath(path) if isinstance(path, Path) else path)[:300],
            expected="a path in the current folder, the library, or what `loramerge ui` was given",
            hint="loramerge library add FOLDER, or start it as loramerge ui FOLDER",
        )


def _is_inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath([path, root]) == root
    except ValueError:  # another drive
        return False


def _links(folder: Path) -> Iterator[Path]:
    """Yield the links in a folder, in those in it, and in those that links lead to."""
    waiting, seen = [os.path.realpath(folder)], set[str]()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        try:
            entries = list(os.scandir(place))
        except OSError:  # a file, or nothing
            continue
        for one in entries:
            if one.is_symlink():
                yield Path(one.path)
            if is_folder(one):
                waiting.append(os.path.realpath(one.path))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; False where that cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False

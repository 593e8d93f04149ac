"""The registry: named bases and library folders, one small JSON file in the user's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path

from loramerge.errors import CorruptFile, FileError, NotFound, Setting, UsageError, suggestion
from loramerge.files.json_values import read_values
from loramerge.records import record

__all__ = [
    "HOLDS", "Folder", "NameRegistry", "NoHome", "cache", "changed_registry", "expanded", "home",
    "load_registry",
]  # fmt: skip

HOLDS = ("adapters", "bases", "both")
_FILE = "registry.json"


class NoHome(FileError):
    """The user has no home folder: `HOME` is not set, and the system knows none."""


def _below_home(name: str, chosen: Path | None) -> Path:
    """Return a folder of the user.

    Raises:
        NoHome: if there is none and the environment names none.
    """
    if chosen is not None:
        return chosen
    import platformdirs

    try:
        found = Path(getattr(platformdirs, name)("loramerge", appauthor=False))
    except RuntimeError:
        found = Path()
    if not found.is_absolute():  # some versions leave a `~` that nothing stands for
        raise NoHome(
            "there is no home folder to keep names and folders in",
            hint="set LORAMERGE_HOME to a folder",
        )
    return found


def _chosen() -> Path | None:
    text = os.environ.get("LORAMERGE_HOME")
    return Path(text) if text else None


def home() -> Path:
    """Return the folder of registry and digests: `$LORAMERGE_HOME`, else the platform's own."""
    return _below_home("user_config_dir", _chosen())


def cache() -> Path:
    """Return the folder of files that can be made again: below `$LORAMERGE_HOME`, else the
    platform's."""
    chosen = _chosen()
    return _below_home("user_cache_dir", None if chosen is None else chosen / "cache")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder it means.

    Raises:
        NotFound: if there is no such home folder, or no path can be so: links that lead in a circle.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise NotFound(
            "~ has no meaning here: there is no home folder", file=path, hint="write the path out"
        ) from None
    try:
        found.resolve()
    except (RuntimeError, ValueError):
        raise NotFound(
            "there can be no such path", file=path, expected="no links that lead in a circle"
        ) from None
    return found


@record
class Folder:
    """A library folder. `holds` says whether names in it are adapters, bases, or both."""

    path: str
    holds: str = "both"


@record
class NameRegistry:
    """Named bases and library folders."""

    bases: dict[str, str] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)

    def save(self) -> None:
        """Write the registry atomically."""
        content = {
            "version": 1,
            "bases": dict(sorted(self.bases.items())),
            "folders": [{"path": f.path, "holds": f.holds} for f in self.folders],
        }
        raw = json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8")
        from loramerge.files.writer import write_bytes  # only here: what reads alone starts sooner

        write_bytes(home() / _FILE, raw, force=True)

    def add_base(self, name: str, path: Path, *, force: bool = False) -> None:
        """Register a base under a name.

        Raises:
            UsageError: if the name cannot be one, or is taken and `force` is false.
        """
        if not name or any(c in name for c in ':/\\<>"|?*') or name != name.strip():
            raise UsageError(
                "this cannot be the name of a base", found=name, hint="letters, digits, - _ . +"
            )
        place = str(path.resolve())
        if self.bases.get(name, place) != place and not force:
            raise UsageError(
                f"the base {name!r} is already registered",
                found=self.bases[name],
                hint=(Setting("force", True), " replaces it"),
            )
        self.bases[name] = place

    def remove_base(self, name: str) -> None:
        """Forget a base; its files stay.

        Raises:
            NotFound: if there is none of this name.
        """
        if name not in self.bases:
            raise NotFound(
                f"no base named {name!r} is registered",
                hint=suggestion(name, self.bases) or "loramerge base list shows them",
            )
        del self.bases[name]

    def add_folder(self, path: Path, holds: str = "both") -> bool:
        """Add a library folder, or change what one holds; False if it is there already.

        Raises:
            NotFound: if it is not a folder.
        """
        if not path.is_dir():
            problem = (
                "this is a file, and a folder is needed" if path.is_file() else "no such folder"
            )
            raise NotFound(problem, file=path)
        folder = Folder(str(path.resolve()), holds)
        if folder in self.folders:
            return False
        self.folders[:] = [known for known in self.folders if known.path != folder.path]
        self.folders.append(folder)
        return True

    def remove_folder(self, path: Path) -> None:
        """Forget a library folder; its files stay.

        Raises:
            NotFound: if it is not in the list.
        """
        place = str(path.resolve())
        kept = [f for f in self.folders if f.path not in (place, str(path))]
        if len(kept) == len(self.folders):
            raise NotFound(
                "this folder is not in the library",
                file=path,
                hint="loramerge library list shows them",
            )
        self.folders[:] = kept


def load_registry() -> NameRegistry:
    """Read the registry; an absent file is an empty registry.

    Raises:
        CorruptFile: if it cannot be understood.
    """
    try:
        path = home() / _FILE
    except NoHome:
        return NameRegistry()  # nothing can have been registered
    try:
        content = read_values(path)
    except FileNotFoundError:
        return NameRegistry()
    except (OSError, ValueError) as error:
        raise CorruptFile(
            f"the registry cannot be read ({error})", file=path, hint="repair or delete it"
        ) from None
    try:
        bases = {str(name): str(place) for name, place in content["bases"].items()}
        folders = [Folder(str(f["path"]), str(f["holds"])) for f in content["folders"]]
    except (KeyError, TypeError, AttributeError):
        raise CorruptFile(
            "the registry is not of a known form", file=path, hint="repair or delete it"
        ) from None
    return NameRegistry(bases, folders)


@contextmanager
def changed_registry() -> Iterator[NameRegistry]:
    """Provide the registry for changes, and write it; other processes wait meanwhile.

    Raises:
        CorruptFile: if it cannot be understood.
        FileError: if it cannot be written.
    """
    from loramerge.files.lock import locked

    with locked(home() / _FILE):
        registry = load_registry()
        yield registry
        registry.save()

"""Files that come with loramerge: a tiny base and its relative, and two adapters for them.

The second base is stored as its difference from the first, an adapter. It is baked into the cache
folder when it is first used.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import loramerge
from loramerge.errors import FileError, NotFound
from loramerge.events import Note, Notify
from loramerge.library.registry import cache

__all__ = [
    "OUTLINED", "SHIPPED", "SHIPPED_ADAPTERS", "SHIPPED_BASES", "TINY", "by_name", "is_shipped",
    "shipped", "shipped_as", "shipped_name", "shipped_places", "told",
]  # fmt: skip

TINY, OUTLINED = "tiny", "tiny-outlined"
SHIPPED_BASES = (TINY, OUTLINED)
SHIPPED_ADAPTERS = ("zuzu", "polka")
SHIPPED = {"adapters": SHIPPED_ADAPTERS, "bases": SHIPPED_BASES}
_FOLDER = "shipped"


def shipped(name: str) -> Path:
    """Return the folder of a base, or the file of an adapter, that comes with loramerge.

    Raises:
        NotFound: if nothing of this name does.
        FileError: if it was not installed, or the cache folder cannot be written.
    """
    if name == OUTLINED:
        return _outlined()
    if name == TINY:
        return _stored(TINY)
    if name in SHIPPED_ADAPTERS:
        return _stored(f"{name}.safetensors")
    raise NotFound(
        f"nothing named {name!r} comes with loramerge",
        expected=", ".join((*SHIPPED_BASES, *SHIPPED_ADAPTERS)),
    )


def shipped_as(name: str) -> list[Path]:
    """Return the name under which loramerge ships a file: `zuzu.safetensors`, `tiny`; or nothing."""
    stem = name.removesuffix(".safetensors")
    known = (*SHIPPED_ADAPTERS, *SHIPPED_BASES)
    if stem not in known or (name != stem and stem in SHIPPED_BASES):
        return []
    try:
        return [shipped(stem)]
    except FileError:
        return []


def shipped_name(path: str | Path) -> str | None:
    """Return the name of a base or adapter that comes with loramerge, by its path; None for others."""
    found = Path(path)
    if found.parent == Path(loramerge.__file__).parent / _FOLDER:
        return found.name.removesuffix(".safetensors")
    made = found.name.startswith(f"{OUTLINED}-") and found.parent in _made_places()
    return OUTLINED if made else None


def by_name(text: str) -> str:
    """Return a text in which bases and adapters that come with loramerge have their names.

    Nobody types where the package keeps them. Paths of files inside of such a base stay as they are.
    """
    if _FOLDER not in text and OUTLINED not in text:
        return text
    for folder in shipped_places():
        if str(folder) in text:
            text = _path_below(folder).sub(_name_of, text)
    return text


def _path_below(folder: Path) -> re.Pattern[str]:
    """Return the pattern of a path right below a folder that is not the start of a longer one."""
    return re.compile(rf"{re.escape(str(folder))}[/\\][\w.-]*\w(?![\w/\\-])")


def _name_of(path: re.Match[str]) -> str:
    name = shipped_name(path[0])
    return name if name in (*SHIPPED_ADAPTERS, *SHIPPED_BASES) else path[0]


def told(name: str, path: Path, notify: Notify) -> Path:
    """Return the path that was found for a name, and note if it is not what loramerge ships so."""
    if name in (*SHIPPED_ADAPTERS, *SHIPPED_BASES) and shipped_name(path) is None:
        sort = "adapter" if name in SHIPPED_ADAPTERS else "base"
        what = "folder" if path.is_dir() else "file"
        text = f"{name}: the {what} {path} is taken, not the {sort} that comes with loramerge"
        notify(Note(text))
    return path


def shipped_places() -> list[Path]:
    """Return the folders that hold what comes with loramerge, one of which may not exist yet."""
    return [Path(loramerge.__file__).parent / _FOLDER, *_made_places()]


def _made_places() -> list[Path]:
    """Return the folder of bases that are baked when they are first used; none without a home folder."""
    try:
        return [cache() / "bases"]
    except FileError:
        return []


def is_shipped(path: Path) -> bool:
    """Return whether a file belongs to the installed package, where nothing may be changed."""
    folder = Path(loramerge.__file__).parent / _FOLDER
    return folder.resolve() in path.resolve().parents


def _stored(name: str) -> Path:
    path = Path(loramerge.__file__).parent / _FOLDER / name
    if not path.exists():
        raise FileError(f"{name}, which comes with loramerge, was not installed", file=path)
    return path


def _outlined() -> Path:
    """Return the second base, baked if it is not in the cache yet.

    Its name there contains a digest of its parts, so another version makes its own. Several
    processes may do this at once: each bakes for itself, and the first that finishes wins.
    """
    from loramerge.checkpoint.files import find_files
    from loramerge.library.digests import digest_of_files

    base, adapter = _stored(TINY), _stored(f"{OUTLINED}.safetensors")
    files = [file.path for file in find_files(base).weights]
    digest = digest_of_files(base.parent, [*files, adapter])[:12]
    target = cache() / "bases" / f"{OUTLINED}-{digest}"
    if target.is_dir():
        return target
    from shutil import rmtree  # costs an inspection 3 ms for nothing if imported above

    own = _own(target)
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        _bake(base, adapter, own)
        if not target.is_dir():
            own.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise FileError(
                f"the base {OUTLINED} cannot be made: {error.strerror}",
                file=target,
                hint="set LORAMERGE_HOME to a folder that can be written",
            ) from None
    finally:
        rmtree(own, ignore_errors=True)
    return target


def _own(target: Path) -> Path:
    """Return a name beside the target that no other process has."""
    return target.with_name(f"{target.name}.{os.getpid()}")


def _bake(base: Path, adapter: Path, output: Path) -> None:
    from loramerge.adapter.load import load
    from loramerge.algebra.weights import Weight
    from loramerge.checkpoint import open_checkpoint
    from loramerge.stream.bake import bake
    from loramerge.stream.plan import plan_bake

    bake(plan_bake(open_checkpoint(base), [(load(adapter), Weight())]), output, force=True)

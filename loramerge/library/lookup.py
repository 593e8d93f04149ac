"""From a name to a file: a path, a registered base, or a name in a library folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from loramerge.errors import NotFound, Setting, UsageError, listed
from loramerge.library.paths import SUFFIXES, bare, below, is_one, walk

if TYPE_CHECKING:
    from loramerge.library.registry import NameRegistry

__all__ = ["find", "is_called", "list_names_by", "names_in_library"]

Names = Callable[["NameRegistry", str], Iterable[tuple[str, Path]]]


def find(
    name: str,
    holds: str,
    registry: NameRegistry | None = None,
    root: Path | None = None,
    *,
    names: Names | None = None,
) -> Path:
    """Return the file (or folder) that a name refers to.

    Looked up as a path, as a repository of Hugging Face (`hf:`), as a registered base (for bases), in
    the library folders (the whole name first, then with a suffix added), and among what comes with
    loramerge. Last comes the index, which knows former names of files, too. `FILE#NAME` is the adapter
    of a name in a file of several.

    Args:
        holds: `adapters`, `bases`, `models` (a base, else an adapter), or `folders` (of images; paths
            only): the kind of file to find.
        root: folder that relative paths start from; None is the current one.
        names: the result of `names_in_library`, for callers with many lookups.

    Raises:
        NotFound: naming the closest name and the searched places. UsageError: if the library has
        the name twice.
    """
    if holds == "models":
        try:
            return find(name, "bases", registry, root, names=names)
        except NotFound as error:
            with suppress(NotFound):
                return find(name, "adapters", registry, root, names=names)
            raise error from None
    if not name.strip():
        raise UsageError(f"an empty name is not the name of any {holds.removesuffix('s')}")
    path = below(root, name)
    if holds == "folders":
        if path.is_dir():
            return path
        from loramerge.library.hints import no_such_folder

        raise no_such_folder(name, path, root)
    if not os.path.exists(path):
        if holds == "adapters" and "#" in path.name:
            file, _, adapter = name.rpartition("#")  # one of several adapters in a file
            found = find(file, holds, registry, root, names=names)
            return found.with_name(f"{found.name}#{adapter}")
        from loramerge.library import hub

        remote = hub.hub_reference(name)
        if remote is not None:
            return hub.fetch(remote, holds, hub.connect() if root is None else hub.cached())
    folder = None
    for place in (path, Path(f"{path}{SUFFIXES[0]}")):
        if os.path.isdir(place) and not is_one(place, holds):
            folder = folder or place  # some folder of that name; meant only if nothing else is
        elif os.path.exists(place):  # unlike Path.exists, also for names no file system could hold
            return place
    return _known(name, holds, registry, root, names or _listing, folder)


def _known(
    name: str,
    holds: str,
    registry: NameRegistry | None,
    root: Path | None,
    names: Names,
    folder: Path | None,
) -> Path:
    """Return the file of a name that is not a path.

    Args:
        folder: what is taken if the name is not known.
    """
    from loramerge.library.registry import load_registry
    from loramerge.library.shipped import SHIPPED, shipped

    registry = registry or load_registry()
    if holds == "bases" and name in registry.bases:
        return _registered(name, Path(registry.bases[name]))
    wanted = PurePath(name.replace("\\", "/")).as_posix()
    listing = list(names(registry, holds))
    matches = _matching(listing, wanted)
    forget = getattr(names, "forget", None)
    there = bool(matches) and all(place.exists() for place in matches.values())
    if forget is not None and not there and name not in SHIPPED[holds]:
        forget()  # the file may be newer than what is remembered, or moved since
        listing = list(names(registry, holds))
        matches = _matching(listing, wanted)
    exact = {real: p for real, p in matches.items() if _is_whole(p, wanted)}
    matches = exact or matches
    if len(matches) > 1:
        raise UsageError(
            f"the name {name!r} matches several files",
            found=listed(sorted(str(p) for p in matches.values())),
            hint="give more of the path",
        )
    if matches:
        return next(iter(matches.values()))
    if name in SHIPPED[holds]:
        return shipped(name)
    if folder is not None:
        return folder
    if (indexed := _indexed(name, holds, wanted)) is not None:
        return indexed
    from loramerge.library.hints import not_found

    raise not_found(name, holds, registry, [bare(one) for one, _ in listing], root)


def _registered(name: str, path: Path) -> Path:
    """Return the path that a base is registered with.

    Raises:
        NotFound: if nothing is there.
    """
    if path.exists():
        return path
    raise NotFound(
        f"the base {name!r} is registered, but its file is gone",
        file=path,
        hint=(f"loramerge base add {name} PATH ", Setting("force", True)),
    )


def _matching(names: Iterable[tuple[str, Path]], wanted: str) -> dict[str, Path]:
    """Return real path → path of the files that a name means."""
    last = wanted.rpartition("/")[2]
    return {
        os.path.realpath(place): place
        for relative, place in names
        if last in relative and _matches(relative, wanted)
    }


def _indexed(name: str, holds: str, wanted: str) -> Path | None:
    """Return the adapter that the index of the library knows by a name, or knew before it was moved.

    Raises:
        UsageError: if there are several.
    """
    if holds != "adapters":
        return None
    from loramerge.library.entries import indexed_paths  # few names need it

    found = indexed_paths(lambda relative: _matches(relative, wanted))
    if len(found) > 1:
        raise UsageError(
            f"the name {name!r} matches several files in the index of the library",
            found=listed([str(path) for path in found]),
            hint="give more of the path",
        )
    return found[0] if found else None


def names_in_library(registry: NameRegistry, holds: str) -> Iterator[tuple[str, Path]]:
    """Yield (path relative to its library folder, path) of every candidate file or folder."""
    for folder in registry.folders:
        if folder.holds not in (holds, "both"):
            continue
        yield from walk(folder.path, holds)


_listing: Names = names_in_library


def list_names_by(names: Names) -> None:
    """Take another listing for all names of this process that are looked up; see `library.listings`."""
    global _listing
    _listing = names


def is_called(relative: str, name: str) -> bool:
    """Return whether a name, as a person writes it, is that of a file in a library folder."""
    return _matches(relative, PurePath(name.replace("\\", "/")).as_posix())


def _matches(relative: str, wanted: str) -> bool:
    """Return whether the last parts of a relative path are the wanted name, suffix given or not."""
    return any(
        candidate == wanted or candidate.endswith("/" + wanted)
        for candidate in (relative, bare(relative))
    )


def _is_whole(path: Path, wanted: str) -> bool:
    return path.as_posix().endswith("/" + wanted)

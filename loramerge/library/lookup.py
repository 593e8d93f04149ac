"""From a name to a file: a path, a registered base, or a name in a library folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from loramerge.errors import NotFound, Setting, UsageError, listed, nearest
from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.forms import GGUF
from loramerge.files.signatures import foreign_in
from loramerge.library.registry import NameRegistry, load_registry
from loramerge.library.shipped import SHIPPED_ADAPTERS, SHIPPED_BASES, shipped

__all__ = [
    "bare",
    "below",
    "elsewhere",
    "expand",
    "files_of",
    "find",
    "is_adapter_folder",
    "is_called",
    "is_one",
    "is_sharded",
    "list_names_by",
    "may_hold",
    "names_in_library",
    "walk",
]

_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
_MAGIC = "*?["
_SHIPPED = {"adapters": SHIPPED_ADAPTERS, "bases": SHIPPED_BASES}
_ONE_OF = {"adapters": "adapter", "bases": "base", "folders": "folder"}
_ADAPTER_CONFIG = "adapter_config.json"
_BASE_CONFIG = "model_index.json"
_INDEX = ".safetensors.index.json"
Names = Callable[["NameRegistry", str], Iterable[tuple[str, Path]]]
_COMPONENTS = frozenset(name for names in COMPONENT_WORDS.values() for name in names)


def below(root: Path | None, name: str) -> Path:
    """Return a path, relative to `root` if it is not absolute."""
    path = Path(name)
    with suppress(RuntimeError):  # `~0` where there is no such user
        path = path.expanduser()
    return path if root is None else root / path


def is_adapter_folder(path: str | Path) -> bool:
    """Return whether a folder is one adapter: a PEFT folder, or one PEFT folder per component."""
    folders = (path, *(os.path.join(path, name) for name in _COMPONENTS))
    return any(os.path.isfile(os.path.join(folder, _ADAPTER_CONFIG)) for folder in folders)


def is_sharded(path: Path) -> bool:
    """Return whether a path is the index of a checkpoint in several files, or a folder that has one."""
    if path.is_dir():
        return not is_adapter_folder(path) and any(path.glob(f"*{_INDEX}"))
    return path.name.endswith(_INDEX) and path.is_file()


def is_one(folder: Path, holds: str) -> bool:
    """Return whether a folder is an adapter, or a checkpoint, as a whole."""
    if holds == "adapters":
        from loramerge.adapter.source import pipeline_file

        return is_adapter_folder(folder) or pipeline_file(folder) is not None
    return (folder / _BASE_CONFIG).is_file() or any(
        next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*/*.safetensors")
    )


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
        raise UsageError(f"an empty name is not the name of any {_ONE_OF[holds]}")
    path = below(root, name)
    if holds == "adapters" and "#" in path.name and not os.path.exists(path):
        file, _, adapter = name.rpartition("#")  # one of several adapters in a file
        found = find(file, holds, registry, root, names=names)
        return found.with_name(f"{found.name}#{adapter}")
    if holds != "folders" and not os.path.exists(path):
        from loramerge.library import hub

        remote = hub.hub_reference(name)
        if remote is not None:
            return hub.fetch(remote, holds, hub.connect() if root is None else hub.cached())
    if holds == "folders":
        if not path.is_dir():
            close = nearest(name, _siblings(name, root, whole=True))
            raise NotFound("there is no such folder", file=path,
                           hint=f"did you mean {close}?" if close else None)  # fmt: skip
        return path
    folder = None
    for place in (path, Path(f"{path}{_SUFFIXES[0]}")):
        if os.path.isdir(place) and not is_one(place, holds):
            folder = folder or place  # some folder of that name; meant only if nothing else is
        elif os.path.exists(place):  # unlike Path.exists, also for names no file system could hold
            return place
    registry = registry or load_registry()
    if holds == "bases" and name in registry.bases:
        place = Path(registry.bases[name])
        if not place.exists():
            raise NotFound(
                f"the base {name!r} is registered, but its file is gone",
                file=place,
                hint=(f"loramerge base add {name} PATH ", Setting("force", True)),
            )
        return place
    wanted = PurePath(name.replace("\\", "/")).as_posix()
    names = names or _listing
    listing = list(names(registry, holds))
    matches = _matching(listing, wanted)
    forget = getattr(names, "forget", None)
    there = bool(matches) and all(place.exists() for place in matches.values())
    if forget is not None and not there and name not in _SHIPPED[holds]:
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
    if name in _SHIPPED[holds]:
        return shipped(name)
    if folder is not None:
        return folder
    if (indexed := _indexed(name, holds, wanted)) is not None:
        return indexed
    raise _not_found(name, holds, registry, [bare(one) for one, _ in listing], root)


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


def _not_found(
    name: str, holds: str, registry: NameRegistry, known: Sequence[str], root: Path | None
) -> NotFound:
    names = [
        *known,
        *_SHIPPED[holds],
        *(registry.bases if holds == "bases" else ()),
        *_siblings(name, root),
    ]
    names += [n for full in known if (n := full.rpartition("/")[2]) != full]
    close = nearest(bare(name), names)
    if not close and not name.lower().endswith(
        _SUFFIXES
    ):  # equal suffixes make any two names alike
        close = nearest(name, _siblings(name, root, whole=True))
    places = ["at this path"]
    if holds == "bases" and registry.bases:
        places.append(f"among the names of registered bases ({len(registry.bases)})")
    folders = [f.path for f in registry.folders if f.holds in (holds, "both")]
    places += [f"in {folder}" for folder in folders]
    what = _ONE_OF[holds]
    hint = f"did you mean {close}?" if close else None
    other = "an adapter, not a base" if holds == "bases" else "a base, not an adapter"
    if name in _SHIPPED["adapters" if holds == "bases" else "bases"]:
        hint = f"{name} is {other}"
    last = name.replace("\\", "/").rpartition("/")[2]
    if not hint and last != name and last in (*_SHIPPED[holds], *names):
        hint = f"did you mean {last}?"
    if not hint and (place := _in_hub_cache(name)) is not None:
        hint = f"the files that other programs downloaded are in {place}"
    if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.lower().endswith(_SUFFIXES):
        hint = f"hf:{name} downloads it from Hugging Face"
    if not hint and what == "adapter":
        hint = "loramerge library add FOLDER makes the adapters of a folder known by name"
    if not hint:
        hint = "loramerge base add NAME PATH makes a base known by name"
    return NotFound(f"no {what} {name!r}", found=f"nothing {', '.join(places)}", hint=hint)


def _in_hub_cache(name: str) -> Path | None:
    """Return the newest copy of a repository in the cache of Hugging Face, None if there is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    home = os.environ.get("HF_HOME") or below(None, "~/.cache/huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or Path(home, "hub")
    folder = Path(cache, f"models--{name.replace('/', '--')}", "snapshots")
    try:
        return max(folder.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    except OSError:
        return None


def _siblings(name: str, root: Path | None, *, whole: bool = False) -> list[str]:
    """Return the names of the files in the folder where `name` was looked for, suffixes apart."""
    folder, _ = os.path.split(name)
    try:
        found = [path.name for path in below(root, folder).iterdir()]
    except OSError:
        return []
    names = [name for name in found if name.lower().endswith(_SUFFIXES)]
    return [os.path.join(folder, name if whole else bare(name)) for name in names]


def elsewhere(path: Path) -> Path | None:
    """Return a file of this name one folder further in or out, for a hint; None if there is none."""
    try:
        inner = sorted(folder / path.name for folder in path.parent.iterdir() if folder.is_dir())
    except OSError:
        return None
    outer = path.absolute().parent.parent / path.name
    return next((one for one in (*inner, outer) if one.exists()), None)


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


def walk(
    root: str,
    holds: str,
    *,
    tell: Callable[[OSError], None] | None = None,
    folders_at_most: int | None = None,
) -> Iterator[tuple[str, Path]]:
    """Yield (relative path, path) of every candidate in a folder and below it.

    Args:
        tell: gets the error of each folder that cannot be read.
        folders_at_most: that are entered; None is all of them.
    """
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=tell and _but_gone(tell), followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # people link model folders
            folders.clear()
            continue
        seen.add(real)
        if folders_at_most is not None and len(seen) > folders_at_most:
            return
        folders.sort()
        one = is_adapter_folder(folder) if holds == "adapters" else _BASE_CONFIG in files
        start = "" if folder == root else Path(folder).relative_to(root).as_posix()
        if one and start:
            folders.clear()
            yield start, Path(folder)
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and may_hold(path, holds):
                yield f"{start}/{name}" if start else name, path


def _but_gone(tell: Callable[[OSError], None]) -> Callable[[OSError], None]:
    """Return a function that passes errors on, but for folders that are gone meanwhile."""
    return lambda error: None if isinstance(error, FileNotFoundError) else tell(error)


def may_hold(path: Path, holds: str) -> bool:
    """Return whether a file may be one of what is looked for; a GGUF file says which it is."""
    if path.suffix.lower() != GGUF:
        return path.name.lower().endswith(_SUFFIXES)
    from loramerge.adapter.formats.gguf_reading import is_gguf_adapter

    return is_gguf_adapter(path) == (holds == "adapters")


def bare(relative: str) -> str:
    """Return a name without its file suffix."""
    for suffix in (*_SUFFIXES, GGUF):
        if relative.lower().endswith(suffix):
            return relative[: -len(suffix)]
    return relative


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


def expand(names: Sequence[str], root: Path | None = None) -> list[tuple[Path, PurePath]]:
    """Return the adapter files of names, folders (recursively) and patterns.

    A text is a pattern only if no file has that name, so `face [v2].safetensors` is a name.

    Returns:
        (path, path relative to the folder given or to where the pattern begins) pairs, in the order
        given and sorted within folders.

    Raises:
        NotFound: if a name or pattern matches nothing.
    """
    found: dict[str, tuple[Path, PurePath]] = {}

    def add(path: Path, relative: PurePath) -> None:
        found.setdefault(os.path.realpath(path), (path, relative))

    for name in names:
        path = below(root, name)
        if os.path.isdir(path) and name and not is_adapter_folder(path):
            shut: list[OSError] = []
            inside = list(walk(str(path), "adapters", tell=shut.append))
            for error in shut:  # whoever opens it tells why nothing of it can be read
                place = Path(os.fsdecode(error.filename))
                inside.append((os.path.relpath(place, path), place))
            if not inside:
                raise NotFound(
                    "the folder holds no adapters",
                    file=path,
                    expected=f"files that end in {', '.join(_SUFFIXES)}, or PEFT folders",
                    found=foreign_in(path),
                )
            for relative, place in inside:
                add(place, PurePath(relative))
        elif any(c in name for c in _MAGIC) and not os.path.exists(path):
            for place, part in _matched(path):
                add(place, part)
        else:
            place = find(name, "adapters", root=root)
            add(place, PurePath(place.name or place.resolve().name))
    return list(found.values())


def files_of(name: str, root: Path | None = None) -> list[Path]:
    """Return the adapters or the checkpoint of a name, for inspection.

    A folder that is a checkpoint or an adapter counts as one; others stand for all adapters in them.

    Raises:
        NotFound: if it matches nothing.
    """
    path = below(root, name)
    if os.path.isfile(path / _BASE_CONFIG) or is_sharded(path):
        return [path]
    try:
        return [place for place, _ in expand([name], root)]
    except NotFound:
        with suppress(NotFound):
            base = find(name, "bases", root=root)
            if base != path:  # a name; what lies at the path holds nothing
                return [base]
        raise


def _matched(pattern: Path) -> list[tuple[Path, PurePath]]:
    """Return the adapters that a pattern matches, with their paths relative to its part without
    wildcards."""
    import glob
    from itertools import takewhile

    fixed = Path(*takewhile(lambda part: not any(c in part for c in _MAGIC), pattern.parts))
    paths = [Path(text) for text in sorted(glob.glob(str(pattern), recursive=True))]
    paths = [p for p in paths if is_adapter_folder(p) or may_hold(p, "adapters")]
    if not paths:
        raise NotFound(
            f"no adapter matches {str(pattern)!r}",
            expected=f"files that end in {', '.join(_SUFFIXES)}, or PEFT folders",
        )
    return [(path, path.relative_to(fixed)) for path in paths]

"""Paths of a library: which files and folders may be an adapter or a checkpoint, by their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from loramerge.families.components import COMPONENT_WORDS
from loramerge.files.forms import GGUF

__all__ = [
    "BASE_CONFIG", "SUFFIXES", "bare", "below", "is_adapter_folder", "is_one", "is_sharded", "may_hold",
    "walk",
]  # fmt: skip

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
BASE_CONFIG = "model_index.json"  # of a checkpoint in a folder
_ADAPTER_CONFIG = "adapter_config.json"
_INDEX = ".safetensors.index.json"
_COMPONENTS = frozenset(name for names in COMPONENT_WORDS.values() for name in names)


def below(root: Path | None, name: str) -> Path:
    """Return a path, relative to `root` if it is not absolute."""
    path = Path(name)
    with suppress(RuntimeError):  # `~0` where there is no such user
        path = path.expanduser()
    return path if root is None else root / path


def bare(relative: str) -> str:
    """Return a name without its file suffix."""
    for suffix in (*SUFFIXES, GGUF):
        if relative.lower().endswith(suffix):
            return relative[: -len(suffix)]
    return relative


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
    return (folder / BASE_CONFIG).is_file() or any(
        next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*/*.safetensors")
    )


def may_hold(path: Path, holds: str) -> bool:
    """Return whether a file may be one of what is looked for; a GGUF file says which it is."""
    if path.suffix.lower() != GGUF:
        return path.name.lower().endswith(SUFFIXES)
    from loramerge.adapter.formats.gguf_reading import is_gguf_adapter

    return is_gguf_adapter(path) == (holds == "adapters")


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
        one = is_adapter_folder(folder) if holds == "adapters" else BASE_CONFIG in files
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

"""The error about a name that nothing has: where it was looked for, and what may be meant."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from loramerge.errors import NotFound, nearest, suggestion
from loramerge.library.paths import SUFFIXES, bare, below
from loramerge.library.registry import NameRegistry
from loramerge.library.shipped import SHIPPED

__all__ = ["elsewhere", "no_such_folder", "not_found"]


_REPOSITORY = r"[\w.-]+/[\w.-]+"  # a name as those of Hugging Face


def no_such_folder(name: str, path: Path, root: Path | None) -> NotFound:
    """Return the error about a folder that is not there, naming a similar one beside it."""
    hint = suggestion(name, _siblings(name, root, whole=True))
    return NotFound("there is no such folder", file=path, hint=hint)


def not_found(
    name: str, holds: str, registry: NameRegistry, known: Sequence[str], root: Path | None
) -> NotFound:
    """Return the error about a name of no adapter or base.

    Args:
        known: the names in the folders of the library.
    """
    places = ["at this path"]
    if holds == "bases" and registry.bases:
        places.append(f"among the names of registered bases ({len(registry.bases)})")
    places += [
        f"in {folder.path}" for folder in registry.folders if folder.holds in (holds, "both")
    ]
    bases = registry.bases if holds == "bases" else ()
    names = [*known, *SHIPPED[holds], *bases, *_siblings(name, root)]
    names += [n for full in known if (n := full.rpartition("/")[2]) != full]
    return NotFound(
        f"no {holds.removesuffix('s')} {name!r}",
        found=f"nothing {', '.join(places)}",
        hint=_hint(name, holds, names, root),
    )


def _hint(name: str, holds: str, names: Sequence[str], root: Path | None) -> str:
    """Return what may be meant by a name, or else what makes one known."""
    if holds == "bases" and name in SHIPPED["adapters"]:
        return f"{name} is an adapter, not a base"
    if holds == "adapters" and name in SHIPPED["bases"]:
        return f"{name} is a base, not an adapter"
    whole = name.lower().endswith(SUFFIXES)
    close = nearest(bare(name), names)
    if not close and not whole:  # equal suffixes make any two names alike
        close = nearest(name, _siblings(name, root, whole=True))
    last = name.replace("\\", "/").rpartition("/")[2]
    if not close and last != name and last in names:
        close = last
    if close:
        return f"did you mean {close}?"
    if (place := _in_hub_cache(name)) is not None:
        return f"the files that other programs downloaded are in {place}"
    if re.fullmatch(_REPOSITORY, name) and not whole:
        return f"hf:{name} downloads it from Hugging Face"
    if holds == "adapters":
        return "loramerge library add FOLDER makes the adapters of a folder known by name"
    return "loramerge base add NAME PATH makes a base known by name"


def _in_hub_cache(name: str) -> Path | None:
    """Return the newest copy of a repository in the cache of Hugging Face, None if there is none."""
    if not re.fullmatch(_REPOSITORY, name):
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
    names = [name for name in found if name.lower().endswith(SUFFIXES)]
    return [os.path.join(folder, name if whole else bare(name)) for name in names]


def elsewhere(path: Path) -> Path | None:
    """Return a file of this name one folder further in or out, for a hint; None if there is none."""
    try:
        inner = sorted(folder / path.name for folder in path.parent.iterdir() if folder.is_dir())
    except OSError:
        return None
    outer = path.absolute().parent.parent / path.name
    return next((one for one in (*inner, outer) if one.exists()), None)

"""The files of one kind in a folder: thousands at once, each looked into briefly."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

from loramerge.errors import FileError
from loramerge.files.folders import IMAGE_SUFFIXES
from loramerge.library.paths import is_one, may_hold
from loramerge.page.places import Places, is_folder

__all__ = ["KINDS", "holds", "listing"]

KINDS = ("adapters", "bases", "images", "recipes", "folders")
_RECIPES = frozenset({".yaml", ".yml"})
_BY_SUFFIX = {"images": IMAGE_SUFFIXES, "recipes": _RECIPES, "folders": frozenset[str]()}
_WEIGHTS = ("adapters", "bases")
_MOST = 1 << 22  # bytes of a header that are looked through
# names of tensors, which are followed by a mapping; in metadata a quotation mark is escaped
_OF_ADAPTERS = re.compile(
    rb'(?:(?:lora|lokr_|hada_|oft_|boft|ia3)[^"\\]*|\.alpha|\.diff|\.diff_b|\.dora_scale)"\s*:\s*\{',
    re.IGNORECASE,
)
_OF_BASES = re.compile(
    rb'"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner|'
    rb"(?:model\.)?(?:double_blocks|joint_blocks|transformer_blocks|input_blocks|down_blocks))\."
    rb'[^"\\]*"\s*:\s*\{'
)
_known: dict[tuple[str, int, int], str | None] = {}


def listing(folder: str, kind: str, places: Places) -> dict[str, Any]:
    """Return the folders in a folder, and the files of a kind; hidden ones are left out.

    A folder that is an adapter, or a checkpoint, as a whole stands among the files of that kind. A link
    that leads out of the places is left out.

    Raises:
        UsageError: if the page may not read the folder.
        FileError: if it cannot be read.
    """
    place = places.allowed(folder)
    try:
        with os.scandir(place) as found:
            entries = [one for one in found if not one.name.startswith(".")]
    except OSError as error:
        raise FileError(f"this folder cannot be read: {error.strerror}", file=place) from None
    linked = {Path(one.path) for one in entries if one.is_symlink()}
    left_out = linked - set(places.inside(sorted(linked)))
    entries = [one for one in entries if Path(one.path) not in left_out]
    entries.sort(key=lambda one: (one.name.casefold(), one.name))
    folders, files = [], []
    for one in entries:
        if not is_folder(one):
            files += [_file(one, places)] if _is_wanted(one, kind) else []
        elif kind in _WEIGHTS and is_one(Path(one.path), kind):
            files.append(_file(one, places))
        else:
            folders.append({"name": one.name, "path": one.path})
    parent = place.parent
    outer = place != parent and places.inside([parent])
    return {
        "folder": str(place),
        "parent": str(parent) if outer else None,
        "places": [str(root) for root in places.roots()],
        "folders": folders,
        "files": files,
    }


def _file(entry: os.DirEntry[str], places: Places) -> dict[str, Any]:
    path = Path(entry.path)
    size = None
    if not is_folder(entry):
        try:
            size = entry.stat().st_size
        except OSError:
            size = 0
    return {
        "name": entry.name,
        "path": entry.path,
        "reference": places.reference(path),
        "size": size,
    }


def _is_wanted(entry: os.DirEntry[str], kind: str) -> bool:
    if not entry.is_file():  # a pipe would be waited for
        return False
    if kind in _BY_SUFFIX:
        return os.path.splitext(entry.name)[1].lower() in _BY_SUFFIX[kind]
    if not may_hold(Path(entry.path), kind):
        return False
    if not entry.name.lower().endswith(".safetensors"):
        return True
    return holds(entry.path) in (kind, None)


def holds(path: str) -> str | None:
    """Return `adapters` or `bases`, by the names of tensors in a file; None where they do not tell."""
    try:
        status = Path(path).stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in _known:
            if len(_known) > 100_000:
                _known.clear()
            _known[key] = _told(path)
        return _known[key]
    except OSError:
        return None


def _told(path: str) -> str | None:
    with open(path, "rb") as file:  # noqa: PTH123
        start = file.read(8)
        if len(start) < 8:
            return None
        head = file.read(min(struct.unpack("<Q", start)[0], _MOST))
    if _OF_ADAPTERS.search(head):
        return "adapters"
    return "bases" if _OF_BASES.search(head) else None

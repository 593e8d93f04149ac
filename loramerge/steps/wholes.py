"""Checkpoints of several files, found in a folder file by file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["wholes"]

_PIPELINE = "model_index.json"
_OF_A_PIPELINE = "pytorch_lora_weights.safetensors"  # an adapter, wherever it lies


def wholes(paths: Iterable[Path], top: Path) -> Iterator[Path]:
    """Yield paths, and for the files of a sharded checkpoint or a pipeline what they are parts of.

    Args:
        top: the name that they were found by.
    """
    seen: dict[Path, Path | None] = {}
    return (_whole(path, top, seen) for path in paths)


def _whole(path: Path, top: Path, seen: dict[Path, Path | None]) -> Path:
    """Return the checkpoint that a file found in a folder is a part of, or the file itself.

    Args:
        top: the name as given.
        seen: folder → the pipeline that it belongs to, of folders that were looked at before.
    """
    if path == top or path.name == _OF_A_PIPELINE:
        return path
    if path.parent not in seen:
        seen[path.parent] = _pipeline(path.parent, top)
    pipeline = seen[path.parent]
    if pipeline is not None:
        return pipeline
    shard = re.fullmatch(r"(.+)-\d{5}-of-\d{5}(\.safetensors)", path.name)
    index = None if shard is None else path.with_name(f"{shard[1]}{shard[2]}.index.json")
    return index if index is not None and index.is_file() else path


def _pipeline(folder: Path, top: Path) -> Path | None:
    """Return the outermost pipeline's folder between one that was named and one in it."""
    found = None
    for place in (folder, *folder.parents):
        if (place / _PIPELINE).is_file():
            found = place
        if place == top:
            break
    return found

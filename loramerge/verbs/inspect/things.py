"""The things that a name stands for: adapters, checkpoints, and those that are one in several files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loramerge.adapter import Adapter
from loramerge.library.lookup import below, files_of
from loramerge.steps.parameters import Context

__all__ = ["InMemory", "things"]

_PIPELINE = "model_index.json"
_OF_A_PIPELINE = "pytorch_lora_weights.safetensors"  # an adapter, wherever it lies


@dataclass(frozen=True, eq=False)
class InMemory:
    """An adapter that a recipe computed, and its name there."""

    name: str
    adapter: Adapter

    def __str__(self) -> str:
        return self.name


def things(names: Sequence[str], context: Context) -> list[Path | InMemory]:
    """Return the files, folders and adapters in memory of names, each once.

    The files of a sharded checkpoint, or of a pipeline's folder, stand for that folder.
    """
    found: list[Path | InMemory] = []
    for name in names:
        known = context.known.get(name)
        if isinstance(known, Adapter):
            found.append(InMemory(name, known))
        elif known is not None:
            found.append(known)
        else:
            top, seen = below(context.root, name), dict[Path, Path | None]()
            found += (_whole(path, top, seen) for path in files_of(name, context.root))
    return list(dict.fromkeys(found))


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

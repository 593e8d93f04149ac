"""Files that were found in folders: the adapters among them, and what else lies there.

A folder holds what people keep together: adapters, checkpoints, upscalers, embeddings. Verbs on adapters
take the adapters of it. A file that was named is always taken, so that a mistake is an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from loramerge.adapter.load import load
from loramerge.checkpoint.generic import are_of_an_adapter
from loramerge.errors import FormatError, LoramergeError, NotFound, listed
from loramerge.library.paths import below, is_adapter_folder
from loramerge.steps.inputs import is_checkpoint
from loramerge.steps.wholes import wholes

__all__ = ["adapters_among", "checkpoint_of", "without_outputs"]

_NAMED = 4  # files that are named in an error


def adapters_among(
    files: Sequence[tuple[Path, PurePath]], names: Sequence[str], root: Path | None = None
) -> tuple[list[tuple[Path, PurePath]], list[Path]]:
    """Return the files that were named or are adapters, and what else the folders hold.

    A file that cannot be read may be a broken adapter, and is kept. The files of a checkpoint in a
    folder, or in several files, stand in the second list as one.

    Args:
        files: (path, path relative to what was given) pairs of `names`, as from `patterns.expand`.

    Raises:
        NotFound: if a folder holds files, and none of them is an adapter.
    """
    tops, named = _folders(names, root)
    kept: list[tuple[Path, PurePath]] = []
    others: dict[Path, Path] = {}  # what was left out → the folder that was given
    some: set[Path] = set()
    for path, relative in files:
        top = next((top for top in tops if path != top and path.is_relative_to(top)), None)
        if top is None or os.path.realpath(path) in named or not _is_other(path):
            kept.append((path, relative))
            some |= {top} if top is not None else set()
        else:
            (whole,) = wholes([path], top)
            others[whole] = top
    for top in dict.fromkeys(others.values()):
        if top not in some:
            raise NotFound(
                "the folder holds no adapters",
                file=top,
                expected="LoRA files or PEFT folders",
                found=_shown([path for path, folder in others.items() if folder == top], top),
            )
    return kept, list(others)


def checkpoint_of(path: Path, tops: Sequence[Path]) -> Path | None:
    """Return the checkpoint that a file is, or is a part of; None for other files.

    Args:
        tops: the names that files were found by.
    """
    top = next((top for top in tops if path.is_relative_to(top)), path)
    (whole,) = wholes([path], top)
    if whole != path:
        return whole
    try:
        return path if is_checkpoint(path) else None
    except LoramergeError:
        return None


def _shown(others: Sequence[Path], top: Path) -> str:
    """Return what a folder holds in words; it may itself be a checkpoint."""
    if others == [top]:
        return "a checkpoint"
    return listed([str(path.relative_to(top)) for path in others], _NAMED)


def without_outputs(
    files: list[tuple[Path, PurePath]], out_dir: str | None
) -> list[tuple[Path, PurePath]]:
    """Leave out files that an earlier run wrote into an input folder.

    Args:
        files: (path, path relative to what was given) pairs, as from `patterns.expand`.
    """
    if out_dir is None:
        return files
    results = Path(os.path.realpath(out_dir))
    kept = []
    for path, relative in files:
        place = Path(os.path.realpath(path))
        root = place.parents[len(relative.parts) - 1]
        inside = results != root and root in results.parents
        if not (inside and results in place.parents):
            kept.append((path, relative))
    return kept


def _folders(names: Sequence[str], root: Path | None) -> tuple[list[Path], set[str]]:
    """Return the folders to look into among names, and the real paths of all other names."""
    tops, named = [], set()
    for name in names:
        path = below(root, name)
        if path.is_dir() and not is_adapter_folder(path):
            tops.append(path)
        else:
            named.add(os.path.realpath(path))
    return tops, named


def _is_other(path: Path) -> bool:
    """Return whether a file can be read, and is a checkpoint or anything else but an adapter."""
    try:
        adapter = load(path)
    except FormatError:
        return _is_model(path)
    except LoramergeError:
        return False
    if adapter.deltas:
        return adapter.only_replaces and _is_model(path)
    unknown = list(adapter.info.account.unknown)
    nothing = not adapter.embeddings and not adapter.info.configs and bool(unknown)
    return nothing and not are_of_an_adapter(unknown)


def _is_model(path: Path) -> bool:
    with suppress(LoramergeError):
        return is_checkpoint(path)
    return False

"""Short names of files that are shown beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

__all__ = ["short_names"]


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the names of files, with as many of their folders as tell them apart.

    Example:
        >>> short_names(["a/x.safetensors", "b/x.safetensors", "b/y.safetensors"])
        ['a/x.safetensors', 'b/x.safetensors', 'y.safetensors']
    """
    parts = {path: PurePath(path).parts for path in paths}
    shown = dict.fromkeys(parts, 1)
    while True:
        names = {path: "/".join(parts[path][-n:]) for path, n in shown.items()}
        found = list(names.values())
        same = [p for p, n in names.items() if found.count(n) > 1 and shown[p] < len(parts[p])]
        if not same:
            return [names[path] or path for path in paths]
        for path in same:
            shown[path] += 1

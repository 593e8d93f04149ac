"""From names, folders and patterns to the adapter files they stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePath

from loramerge.errors import NotFound
from loramerge.events import Notify, ignore
from loramerge.files.signatures import foreign_in
from loramerge.library.lookup import find
from loramerge.library.paths import (
    BASE_CONFIG,
    SUFFIXES,
    below,
    is_adapter_folder,
    is_sharded,
    may_hold,
    walk,
)
from loramerge.library.shipped import told

__all__ = ["expand", "files_of"]

_MAGIC = "*?["


def expand(
    names: Sequence[str], root: Path | None = None, notify: Notify = ignore
) -> list[tuple[Path, PurePath]]:
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
                    expected=f"files that end in {', '.join(SUFFIXES)}, or PEFT folders",
                    found=foreign_in(path),
                )
            for relative, place in inside:
                add(place, PurePath(relative))
        elif any(c in name for c in _MAGIC) and not os.path.exists(path):
            for place, part in _matched(path):
                add(place, part)
        else:
            place = told(name, find(name, "adapters", root=root), notify)
            add(place, PurePath(place.name or place.resolve().name))
    return list(found.values())


def files_of(name: str, root: Path | None = None, notify: Notify = ignore) -> list[Path]:
    """Return the adapters or the checkpoint of a name, for inspection.

    A folder that is a checkpoint or an adapter counts as one; others stand for all adapters in them.

    Raises:
        NotFound: if it matches nothing.
    """
    path = below(root, name)
    if os.path.isfile(path / BASE_CONFIG) or is_sharded(path):
        return [told(name, path, notify)]
    try:
        return [place for place, _ in expand([name], root, notify)]
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
            expected=f"files that end in {', '.join(SUFFIXES)}, or PEFT folders",
        )
    return [(path, path.relative_to(fixed)) for path in paths]

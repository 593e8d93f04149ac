"""Several adapters in one file, told by their names inside the keys: `….lora_A.NAME.weight`.

Such a file is given as `FILE#NAME`. A file of one name needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from loramerge.adapter.formats.source import AdapterSource
from loramerge.errors import FormatError, listed, suggestion

__all__ = ["choose_named", "names_in", "split_name"]

_NAMED = re.compile(
    r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.(?!weight$|bias$)([^.\d][^.]*)"
    r"(\.weight|\.bias)?$"
)


def split_name(path: Path) -> tuple[Path, str]:
    """Return a file's path and the name of the adapter in it, '' where none is given."""
    if "#" not in path.name or path.exists():
        return path, ""
    file, _, name = path.name.rpartition("#")
    return path.with_name(file) if file else path, name


def names_in(keys: Iterable[str]) -> list[str]:
    """Return the names of adapters in keys, in the order in which they occur."""
    return list(dict.fromkeys(found[2] for key in keys if (found := _NAMED.search(key))))


def choose_named(source: AdapterSource, name: str) -> None:
    """Keep the tensors of one adapter, without its name, and those that have none.

    Raises:
        FormatError: if there is no adapter of the name.
    """
    names = names_in(source.tensors)
    if name not in names:
        raise FormatError(
            f"the file holds no adapter of the name {name!r}",
            file=source.path,
            found=listed(names, 12) if names else "no names in its keys",
            hint=suggestion(name, names),
        )
    kept = {}
    for key, tensor in source.tensors.items():
        found = _NAMED.search(key)
        if found is None:
            kept[key] = tensor
        elif found[2] == name:
            kept[key[: found.start()] + found[1] + (found[3] or "")] = tensor
    source.tensors = kept
    source.path = f"{source.path}#{name}"

"""The form of a file of weights, by its name and its first bytes; nothing that reads it is imported."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

__all__ = ["GGUF", "GGUF_MAGIC", "PARTIAL", "PICKLES", "final_path", "is_gguf", "is_pickle"]

GGUF = ".gguf"
GGUF_MAGIC = b"GGUF"
PARTIAL = ".partial"  # ending of a file or folder that is not whole yet
PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})


def final_path(path: str | PathLike[str]) -> Path:
    """Return the path that a file gets once it is whole, for messages; long names may be cut."""
    return Path(*(_final_name(part) for part in Path(path).parts))


def _final_name(part: str) -> str:
    if not (part.startswith(".") and part.endswith(PARTIAL)):
        return part
    return part[1 : -len(PARTIAL)].rpartition(".")[0] or part


def is_gguf(path: str | PathLike[str]) -> bool:
    """Return whether a file has the name of a GGUF file and begins as one; false if unreadable.

    A file that is not whole yet has a temporary name.
    """
    if Path(path).suffix.lower() not in (GGUF, PARTIAL):
        return False
    try:
        with Path(path).open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except (OSError, ValueError):
        return False


def is_pickle(path: str | PathLike[str]) -> bool:
    """Return whether the name is that of a pickled file."""
    return os.path.splitext(os.fspath(path))[1].lower() in PICKLES

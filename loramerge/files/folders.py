"""The files in a folder of images: the images themselves, and their captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CAPTION_SUFFIXES", "IMAGE_SUFFIXES", "LISTING", "dataset_files", "image_files"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
CAPTION_SUFFIXES = (".txt", ".caption")  # the first that is there counts
LISTING = "metadata.jsonl"


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden files and folders are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder, sorted."""
    return (path for path in _files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def dataset_files(folder: Path) -> list[Path]:
    """Return the images below a folder and the files that hold their captions."""
    suffixes = IMAGE_SUFFIXES | {*CAPTION_SUFFIXES}
    return [p for p in _files(folder) if p.suffix.lower() in suffixes or p.name == LISTING]

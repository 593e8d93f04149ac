"""The files in a folder of images: the images themselves, and their captions.

What a training run wrote (samples, regularisation images, caches) is never data of another run or of its
own, wherever it lies. A run's folder is known by its log or state, a cache by its latents.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = [
    "CAPTION_SUFFIXES", "IMAGE_SUFFIXES", "LISTING", "RUN_LOG", "RUN_SAMPLES", "RUN_STATE",
    "dataset_files", "image_files",
]  # fmt: skip

IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif",
    ".jxl", ".heic", ".heif", ".jp2",
})  # fmt: skip
RUN_LOG, RUN_STATE, RUN_SAMPLES = "log.jsonl", "state.pt", "samples.png"  # in a run's folder
_SHARD = ".safetensors"
CAPTION_SUFFIXES = (".txt", ".caption")  # the first that is there counts
LISTING = "metadata.jsonl"


def _files(folder: Path, without: Collection[Path]) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden ones and those of training runs are left out."""
    left_out = {os.path.realpath(path) for path in without}
    for place, folders, names in os.walk(folder):
        if Path(place) != folder and _written_by_run(names):
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(place, name)) not in left_out
        )
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _written_by_run(names: Collection[str]) -> bool:
    """Return whether a folder with these files is that of a training run, or its cache."""
    return any(
        name in (RUN_LOG, RUN_STATE) or (name.startswith("latents-") and name.endswith(_SHARD))
        for name in names
    )


def image_files(folder: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the images below a folder, sorted.

    Args:
        without: folders inside that are not searched: those a run is about to write.
    """
    return (path for path in _files(folder, without) if path.suffix.lower() in IMAGE_SUFFIXES)


def dataset_files(folder: Path, without: Collection[Path] = ()) -> list[Path]:
    """Return the images below a folder and the files that hold their captions; see `image_files`."""
    suffixes = IMAGE_SUFFIXES | {*CAPTION_SUFFIXES}
    return [p for p in _files(folder, without) if p.suffix.lower() in suffixes or p.name == LISTING]

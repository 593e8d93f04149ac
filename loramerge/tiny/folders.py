"""Folders of captioned sprites, as `loramerge train` takes them.

    subject, ordinary = write_folders("pictures")
    loramerge train --base tiny --images pictures/zuzu --regularisation pictures/ordinary …

`zuzu` holds the character on the six backgrounds of `adapters.SEEN`, `ordinary` what a model is to keep.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from PIL import Image

from loramerge.files.atomic import check_target
from loramerge.files.writer import write_bytes
from loramerge.report.pictures import png_bytes
from loramerge.tiny.adapters import Pairs, zuzu_pictures
from loramerge.tiny.drawing import draw
from loramerge.tiny.sprites import ZUZU

__all__ = ["ORDINARY", "write_folders", "write_pictures"]

ORDINARY = "ordinary"


def write_pictures(folder: str | PathLike[str], pairs: Pairs, *, force: bool = False) -> Path:
    """Write sprites as `000.png`, 32×32, with their captions beside them as `000.txt`.

    Raises:
        OutputExists: if one of the files is there, without `force`.
    """
    path = Path(folder)
    files = _files(path, len(pairs), force)
    for (picture, text), (sprite, caption) in zip(files, pairs, strict=True):
        write_bytes(picture, png_bytes(Image.fromarray(draw(sprite))), force=True)
        write_bytes(text, f"{caption}\n".encode(), force=True)
    return path


def _files(folder: Path, count: int, force: bool) -> list[tuple[Path, Path]]:
    """Return the names of so many pictures and captions; none may exist without `force`."""
    pairs = [(folder / f"{i:03}.png", folder / f"{i:03}.txt") for i in range(count)]
    for pair in pairs:
        for file in pair:
            check_target(file, force=force)
    return pairs


def write_folders(
    folder: str | PathLike[str], *, seed: int = 0, outlined: bool = False, force: bool = False
) -> tuple[Path, Path]:
    """Write the pictures of the character's lesson, 64 of it and 64 ordinary ones.

    Args:
        outlined: with lines around everything, as `tiny-outlined` draws.

    Returns:
        The folder of the character, and that of the ordinary pictures.

    Raises:
        OutputExists: see `write_pictures`; nothing is written then.
    """
    pairs = zuzu_pictures(seed, outlined=outlined)
    parts = {
        Path(folder, ZUZU): [pair for pair in pairs if pair[0].kind == ZUZU],
        Path(folder, ORDINARY): [pair for pair in pairs if pair[0].kind != ZUZU],
    }
    for path, some in parts.items():
        _files(path, len(some), force)
    subject, ordinary = (write_pictures(p, some, force=force) for p, some in parts.items())
    return subject, ordinary

"""Sprites as a folder of pictures with captions, such as anyone trains on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from loramerge.files.writer import write_bytes
from loramerge.train.pictures import write_png
from loramerge.train.tiny.adapters import Pairs, zuzu_pictures
from loramerge.train.tiny.sprites import ZUZU, draw

__all__ = ["write_pictures", "write_zuzu"]


def write_pictures(pairs: Pairs, folder: Path) -> int:
    """Write sprites as `000.png`, `001.png`, …, each with its caption beside it in a `.txt` file.

    Files of these names are replaced. Returns how many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, (sprite, caption) in enumerate(pairs):
        path = folder / f"{number:03}.png"
        write_png(Image.fromarray(draw(sprite)), path)
        write_bytes(path.with_suffix(".txt"), f"{caption}\n".encode(), force=True)
    return len(pairs)


def write_zuzu(subject: Path, regular: Path, seed: int = 0) -> tuple[int, int]:
    """Write pictures of the character and ordinary ones into two folders; return how many of each."""
    pairs = zuzu_pictures(seed)
    return (
        write_pictures([pair for pair in pairs if pair[0].kind == ZUZU], subject),
        write_pictures([pair for pair in pairs if pair[0].kind != ZUZU], regular),
    )

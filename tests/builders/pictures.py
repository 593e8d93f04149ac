"""Folders of small pictures, drawn by formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

Image: Any = pytest.importorskip("PIL.Image")

SIZES = ((32, 32), (48, 24), (24, 48), (32, 30))


def picture(number: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Any:
    width, height = size
    image = Image.new("RGB", size, ((53 * number) % 256, (97 * number) % 256, 120))
    for x in range(width // 4, width // 2):
        for y in range(height // 4, height // 2):
            image.putpixel((x, y), ((201 * number + 5 * x) % 256, 30, (9 * y) % 256))
    return image.convert(mode)


def folder_of(path: Path, count: int = 4, *, captions: bool = True) -> Path:
    """Write pictures of several ratios, with sidecars that name them."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, SIZES[number % len(SIZES)]).save(path / f"{number:03}.png")
        if captions:
            (path / f"{number:03}.txt").write_text(f"red, round, thing {number}\n", "utf-8")
    return path

"""Grids of pictures with labels, drawn with Pillow, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loramerge.errors import MissingExtra
from loramerge.files.writer import write_bytes
from loramerge.report.fonts import font_for, legible

__all__ = ["grid", "png_bytes", "require_pillow", "write_png"]

_INK, _PAPER, _FAINT = (32, 32, 32), (255, 255, 255), (110, 110, 110)
_GAP = 6
_SMALLEST = 96  # pixels of a cell's side; smaller pictures are enlarged by whole numbers
_LINES = 4  # of a label; beside a picture as many as its height takes


def require_pillow() -> tuple[Any, Any]:
    """Return the modules of Pillow that are drawn with.

    Raises:
        MissingExtra: if it is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise MissingExtra("pictures need Pillow", hint="pip install 'loramerge[train]'") from None
    return Image, ImageDraw


def grid(
    cells: Sequence[Sequence[Any]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None = None,
) -> Any:
    """Return one picture of many: a row of labels above, a column of labels at the left.

    Args:
        cells: rows of pictures of any size, None for an empty place.
        rows, columns: labels, wrapped, cut where long; letters that no font has are escaped.
        title: a line above all.
    """
    image, drawing = require_pillow()
    shown = [[None if cell is None else _enlarged(cell, image) for cell in row] for row in cells]
    width = max((c.width for row in shown for c in row if c is not None), default=_SMALLEST)
    heights = [max((c.height for c in row if c is not None), default=_SMALLEST) for row in shown]
    size = max(10, min(18, width // 12))
    font = font_for([*rows, *columns, title or ""], size)
    rows, columns = ([legible(label, font) for label in labels] for labels in (rows, columns))
    title = None if title is None else legible(title, font)
    pen = drawing.Draw(image.new("RGB", (1, 1)))
    line = int(size * 1.3)
    side = max(width * 2 // 3, 8 * size) if any(rows) else 0
    heads = [_wrapped(pen, label, font, width) for label in columns]
    names = [
        _wrapped(pen, label, font, side - _GAP, max(_LINES, height // line))
        for label, height in zip(rows, heights, strict=True)
    ]
    head = max((len(lines) for lines in heads), default=0) * line
    above = _GAP + (line + _GAP if title else 0)
    heights = [max(height, len(lines) * line) for height, lines in zip(heights, names, strict=True)]
    whole = image.new(
        "RGB",
        (
            side + _GAP + len(columns) * (width + _GAP),
            above + head + _GAP + sum(height + _GAP for height in heights),
        ),
        _PAPER,
    )
    pen = drawing.Draw(whole)
    if title:
        pen.text((_GAP, _GAP), title, _INK, font)
    for column, lines in enumerate(heads):
        left = side + _GAP + column * (width + _GAP)
        for number, text in enumerate(lines):
            pen.text((left, above + number * line), text, _INK, font)
    top = above + head + _GAP
    for row, height, lines in zip(shown, heights, names, strict=True):
        for number, text in enumerate(lines):
            pen.text((_GAP, top + number * line), text, _FAINT, font)
        for column, cell in enumerate(row):
            if cell is not None:
                whole.paste(cell, (side + _GAP + column * (width + _GAP), top))
        top += height + _GAP
    return whole


def _enlarged(picture: Any, image: Any) -> Any:
    factor = -(-_SMALLEST // max(picture.size))
    if factor <= 1:
        return picture
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, image.Resampling.NEAREST)


def _wrapped(pen: Any, text: str, font: Any, width: int, most: int = _LINES) -> list[str]:
    """Return a label in lines of at most a width, the last one cut if there are more than `most`."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = lines[:most]
    if len(lines) > most:
        cut[-1] += " …"
    return [_shortened(pen, line, font, width) for line in cut]


def _shortened(pen: Any, line: str, font: Any, width: int) -> str:
    if pen.textlength(line, font) <= width:
        return line
    while len(line) > 1 and pen.textlength(f"{line}…", font) > width:
        line = line[:-1]
    return f"{line}…"


def png_bytes(picture: Any, about: Mapping[str, str] | None = None) -> bytes:
    """Return a picture as PNG; the same picture gives the same bytes.

    Args:
        about: texts to keep in the file.
    """
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for name, text in (about or {}).items():
        texts.add_itxt(name, text)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def write_png(picture: Any, path: Path) -> None:
    """Write a picture as PNG, atomically, replacing an existing file."""
    write_bytes(path, png_bytes(picture), force=True)

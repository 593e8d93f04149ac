"""Bars as a picture, drawn with Pillow: for programs that have Pillow and not matplotlib."""

from __future__ import annotations

from typing import Any

from loramerge.report.document import Bars
from loramerge.report.fonts import font_for, legible
from loramerge.report.pictures import require_pillow

__all__ = ["picture_of_bars"]

_INK, _PAPER, _FAINT, _FILL = (32, 32, 32), (255, 255, 255), (110, 110, 110), (17, 68, 119)
_WIDTH, _ROW, _GAP, _TEXT = 900, 26, 16, 16
_MOST = 80  # rows; further ones are counted in the last line


def picture_of_bars(figure: Bars, title: str) -> Any:
    """Return a picture of the first series of a figure, each bar with its value.

    Args:
        title: a line above.

    Raises:
        MissingExtra: if Pillow is not installed.
    """
    image, drawing = require_pillow()
    font = font_for([title, *(name for name, _ in figure.rows)], _TEXT)
    shown, left = figure.rows[:_MOST], len(figure.rows) - _MOST
    pen = drawing.Draw(image.new("RGB", (1, 1)))
    names = [legible(name, font) for name, _ in shown]
    side = max((int(pen.textlength(name, font)) for name in names), default=0) + 2 * _GAP
    values = int(pen.textlength("0.00000", font)) + _GAP
    room = max(_WIDTH - side - values, 200)
    height = 3 * _GAP + _TEXT + (len(shown) + (left > 0)) * _ROW
    whole = image.new("RGB", (side + room + values, height), _PAPER)
    pen = drawing.Draw(whole)
    pen.text((_GAP, _GAP), legible(title, font), _INK, font)
    top = 2 * _GAP + _TEXT
    for name, (_, row) in zip(names, shown, strict=True):
        length = room * abs(row[0] or 0.0) / figure.longest
        pen.text((_GAP, top), name, _INK, font)
        pen.rectangle((side, top + 2, side + length, top + _ROW - 8), _FILL)
        pen.text((side + length + 8, top), figure.show(row[0]), _FAINT, font)
        top += _ROW
    if left > 0:
        pen.text((_GAP, top), f"… and {left} more", _FAINT, font)
    return whole

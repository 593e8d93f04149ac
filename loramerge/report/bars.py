"""A chart of labelled bars, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from loramerge.report.chart import require_pillow
from loramerge.report.fonts import font_for, legible

__all__ = ["Bar", "bars"]

_INK, _PAPER, _FAINT, _FILL = (32, 32, 32), (255, 255, 255), (110, 110, 110), (17, 68, 119)
_WIDTH, _ROW, _GAP, _TEXT = 900, 26, 16, 16
_MOST = 80  # bars; further ones are counted in the last line


class Bar(NamedTuple):
    """A bar: its name, and its length, at least 0."""

    name: str
    value: float


def bars(found: Sequence[Bar], title: str) -> Any:
    """Return a picture of bars below each other, each with its value; the longest fills the width."""
    image, drawing = require_pillow()
    font = font_for([title, *(bar.name for bar in found)], _TEXT)
    shown, left = found[:_MOST], len(found) - _MOST
    pen = drawing.Draw(image.new("RGB", (1, 1)))
    names = [legible(bar.name, font) for bar in shown]
    side = max((int(pen.textlength(name, font)) for name in names), default=0) + 2 * _GAP
    number = int(pen.textlength("0.00000", font)) + _GAP
    room = max(_WIDTH - side - number, 200)
    rows = len(shown) + (left > 0)
    whole = image.new("RGB", (side + room + number, 3 * _GAP + _TEXT + rows * _ROW), _PAPER)
    pen = drawing.Draw(whole)
    pen.text((_GAP, _GAP), legible(title, font), _INK, font)
    most = max((bar.value for bar in shown), default=0.0)
    top = 2 * _GAP + _TEXT
    for name, bar in zip(names, shown, strict=True):
        length = room * bar.value / most if most > 0 else 0.0
        pen.text((_GAP, top), name, _INK, font)
        pen.rectangle((side, top + 2, side + length, top + _ROW - 8), _FILL)
        pen.text((side + length + 8, top), f"{bar.value:.4g}", _FAINT, font)
        top += _ROW
    if left > 0:
        pen.text((_GAP, top), f"… and {left} more", _FAINT, font)
    return whole

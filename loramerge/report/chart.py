"""A chart of lines over sizes, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.errors import MissingExtra
from loramerge.report.fonts import font_for, legible

__all__ = ["Line", "chart", "require_pillow"]

_INK, _PAPER, _FAINT, _GRID = (32, 32, 32), (255, 255, 255), (110, 110, 110), (222, 222, 222)
_COLOURS = ((176, 58, 46), (17, 68, 119), (60, 130, 60), (130, 80, 150))
_SIZE = (1200, 760)
_LEFT, _RIGHT, _TOP, _BOTTOM = 120, 40, 90, 100  # pixels beside the area of the lines
_TEXT, _LABEL = 22, 18
_DOT = 5


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        points: (x, y), both at least 0, by x.
        labels: of the points, none or one for each.
    """

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = field(default=())


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


def ticks(most: float, count: int = 6) -> list[float]:
    """Return round numbers from 0 on: about `count` steps of 1, 2 or 5 times a power of ten."""
    if not most > 0:
        return [0.0]
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * n for n in range(int(most / step * (1 + 1e-9)) + 1)]


def chart(
    lines: Sequence[Line], *, title: str, across: str, up: str, unit: Callable[[int], str]
) -> Any:
    """Return a picture of lines over a common axis that begins at 0, as does the one upwards.

    Args:
        across, up: names of the axes.
        unit: function of a number of the axis across that gives its label.
    """
    image, drawing = require_pillow()
    points = [point for line in lines for point in line.points]
    wide = max((x for x, _ in points), default=1.0) or 1.0
    high = max((y for _, y in points), default=1.0) * 1.05 or 1.0
    picture = image.new("RGB", _SIZE, _PAPER)
    pen = drawing.Draw(picture)
    font, small = font_for([title], _TEXT), font_for([title], _LABEL)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_SIZE[0] - _LEFT - _RIGHT) * x / wide,
            _SIZE[1] - _BOTTOM - (_SIZE[1] - _TOP - _BOTTOM) * y / high,
        )

    pen.text((_LEFT, 18), legible(title, font), _INK, font)
    for value in ticks(high):
        left, top = place(0, value)
        pen.line((left, top, _SIZE[0] - _RIGHT, top), _GRID, 1)
        pen.text((left - 12, top), f"{value:g}", _FAINT, small, anchor="rm")
    for value in ticks(wide):
        left, bottom = place(value, 0)
        pen.line((left, bottom, left, bottom + 6), _FAINT, 1)
        pen.text((left, bottom + 12), unit(round(value)), _FAINT, small, anchor="ma")
    pen.line((*place(0, 0), *place(wide, 0)), _FAINT, 1)
    pen.text((_SIZE[0] - _RIGHT, _SIZE[1] - 18), across, _INK, small, anchor="rs")
    pen.text((_LEFT - 100, 58), up, _INK, small)
    for number, (line, colour) in enumerate(zip(lines, _COLOURS, strict=False)):
        found = [place(x, y) for x, y in line.points]
        if len(found) > 1:
            pen.line([part for point in found for part in point], colour, 3, joint="curve")
        for left, top in found:
            pen.ellipse((left - _DOT, top - _DOT, left + _DOT, top + _DOT), colour)
        for (left, top), label in zip(found, line.labels, strict=False):
            pen.text((left + 8, top - 8), label, colour, small, anchor="ls")
        height = 50 + number * (_LABEL + 10)
        edge = _SIZE[0] - _RIGHT - 330
        pen.line((edge, height + 10, edge + 40, height + 10), colour, 3)
        pen.text((edge + 52, height + 10), line.name, _INK, small, anchor="lm")
    return picture

"""The geometry of figures that are drawn as SVG inside a page: shapes with classes, no colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from loramerge.report.document import Lines, Panel, Panels

__all__ = [
    "SvgDrawing",
    "TextMark",
    "draw_lines",
    "draw_panels",
    "panel_bounds",
    "thinned",
    "ticks",
]

_WIDE, _HIGH = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 14, 46
_POINTS = 400  # of a line; more are averaged
_SMALL = (188, 104)  # a panel
_FRAME = (44, 6, 6, 16)  # left, right, top, bottom of a panel
_DEPTH = 1e-4  # share of the largest value below which values are drawn at the edge


@dataclass(frozen=True)
class TextMark:
    """A text at a place; `anchor` is `start`, `middle` or `end`."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = "tick"


@dataclass
class SvgDrawing:
    """Shapes within a box of `width` × `height`.

    Args:
        paths: (class, path data); dots: (class, x, y).
    """

    name: str
    width: int
    height: int
    paths: list[tuple[str, str]] = field(default_factory=list)
    dots: list[tuple[str, float, float]] = field(default_factory=list)
    texts: list[TextMark] = field(default_factory=list)


def ticks(least: float, most: float, count: int = 5) -> list[float]:
    """Return round numbers within bounds: about `count` steps of 1, 2 or 5 times a power of ten."""
    span = most - least
    if not span > 0:
        return [least]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(least / step * (1 - 1e-9))
    return [step * n for n in range(first, math.floor(most / step * (1 + 1e-9)) + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most a number of points, each the mean of its part."""
    if len(points) <= _POINTS:
        return list(points)
    bounds = [n * len(points) // _POINTS for n in range(_POINTS + 1)]
    return [
        (sum(x for x, _ in points[a:b]) / (b - a), sum(y for _, y in points[a:b]) / (b - a))
        for a, b in pairwise(bounds)
    ]


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def draw_lines(figure: Lines) -> SvgDrawing:
    """Return a figure of lines with axes."""
    lines = [(line, thinned(line.points)) for line in figure.lines]
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    left, right = min(xs), max(xs)
    low, high = (0.0 if figure.from_zero and min(ys) >= 0 else min(ys)), max(ys)
    margin = (high - low) * 0.06 or abs(high) or 1.0
    high += margin
    low -= 0 if figure.from_zero and low == 0 else margin
    across, up = _WIDE - _LEFT - _RIGHT, _HIGH - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - left) / (right - left) if right > left else 0.5
        return _LEFT + across * share, _HIGH - _BOTTOM - up * (y - low) / (high - low)

    found = SvgDrawing(figure.title, _WIDE, _HIGH)
    for value in ticks(low, high):
        x, y = place(left, value)
        found.paths.append(("grid", _path([(x, y), (_WIDE - _RIGHT, y)])))
        found.texts.append(TextMark(x - 8, y + 4, f"{value + 0.0:.6g}", "end"))
    for value in ticks(left, right, 6):
        x, y = place(value, low)
        found.paths.append(("axis", _path([(x, y), (x, y + 5)])))
        found.texts.append(TextMark(x, y + 18, figure.unit(value), "middle"))
    found.paths.append(("axis", _path([place(left, low), place(right, low)])))
    found.texts.append(TextMark(_WIDE - _RIGHT, _HIGH - 8, figure.across, "end", "name"))
    numbers = accumulate((not line.faint for line, _ in lines), initial=0)
    for number, (line, points) in zip(numbers, lines, strict=False):
        kind = "faint" if line.faint else f"line l{number % 4}"
        places = [place(x, y) for x, y in points]
        if len(places) > 1:
            found.paths.append((kind, _path(places)))
        if line.labels or len(places) == 1:
            found.dots += [(f"dot l{number % 4}", x, y) for x, y in places]
        found.texts += [
            TextMark(x + 6, y - 7, label, "start", "label")
            if x < _WIDE - 3 * _RIGHT
            else TextMark(x, y - 9, label, "end", "label")
            for (x, y), label in zip(places, line.labels, strict=False)
        ]
    return found


@dataclass(frozen=True)
class _Axes:
    """The axes that all panels share: 1 to `last`, and `low` to `high`, logarithmic."""

    last: int
    low: float
    high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        left, right, top, bottom = _FRAME
        share = (x - 1) / (self.last - 1) if self.last > 1 else 0.5
        height = math.log(max(y, self.low) / self.low) / math.log(self.high / self.low)
        return (
            left + (_SMALL[0] - left - right) * share,
            top + (_SMALL[1] - top - bottom) * (1 - height),
        )


def panel_bounds(figure: Panels) -> tuple[int, float, float]:
    """Return the last place of the axis across, and the bounds of the one upwards."""
    every = [v for panel in figure.panels for one in panel.series for part in one for v in part]
    above = [value for value in every if value > 0]
    high = max(above, default=1.0)
    low = max(min(above, default=1.0), high * _DEPTH)
    last = max((len(one[0]) for p in figure.panels for one in p.series), default=1)
    return last, (low if low < high else high / 10), high


def draw_panels(figure: Panels) -> list[SvgDrawing]:
    """Return the small figures, all with the same axes."""
    axes = _Axes(*panel_bounds(figure))
    return [_panel(panel, axes) for panel in figure.panels]


def _panel(panel: Panel, axes: _Axes) -> SvgDrawing:
    found = SvgDrawing(panel.name, *_SMALL)
    for value in (axes.low, axes.high):
        x, y = axes.place(1, value)
        found.paths.append(("grid", _path([(x, y), (_SMALL[0] - _FRAME[1], y)])))
        found.texts.append(
            TextMark(x - 4, y + (8 if value == axes.high else 0), f"{value:.2g}", "end")
        )
    for number in dict.fromkeys((1, axes.last)):
        x, y = axes.place(number, axes.low)
        anchor = "start" if number == 1 else "end"
        found.texts.append(TextMark(x, y + 12, str(number), anchor))
    for number, (middle, least, most) in enumerate(panel.series):
        over, under, line = (
            [axes.place(n, y) for n, y in enumerate(part, 1)] for part in (most, least, middle)
        )
        if len(middle) > 1:
            found.paths.append((f"band l{number % 4}", _path([*over, *reversed(under)]) + "Z"))
            found.paths.append((f"line l{number % 4}", _path(line)))
        elif middle:
            found.dots.append((f"dot l{number % 4}", *line[0]))
    return found

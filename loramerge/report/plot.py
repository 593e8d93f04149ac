"""The figures of a report as a PNG, SVG or PDF file for papers, drawn with matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from loramerge.errors import MissingExtra, Setting, UsageError
from loramerge.report.document import Bars, Figure, HeatMap, Lines, Panels, number
from loramerge.report.page import INSTALL
from loramerge.report.svg import panel_bounds

__all__ = ["FORMATS", "check_format", "plot", "require_matplotlib"]

FORMATS = (".png", ".svg", ".pdf")
# no time and no version, so that the same figures give the same bytes
_ABOUT = {
    ".png": {"Software": "loramerge"},
    ".svg": {"Date": None, "Creator": "loramerge"},
    ".pdf": {"CreationDate": None, "Creator": "loramerge", "Producer": "loramerge"},
}
_STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # which comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#566070",
    "text.parse_math": False,  # names are no formulas
    "svg.hashsalt": "loramerge",
    "pdf.fonttype": 42,
    "path.simplify": True,
}
_COLOURS = ("#1f5fa8", "#b3472d", "#2f7d4f", "#7a4a9e")
_DASHES = ("-", "--", ":", "-.")
_WIDTH = 7.2  # inches: the text width of most papers
_ACROSS = 4  # panels side by side
_DOTS = 200  # per inch, of PNG
_LETTERS = 34  # characters of a label


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        MissingExtra: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtra("plots need matplotlib", hint=INSTALL)


def check_format(path: Path) -> str:
    """Return the format that a path names, with its dot.

    Raises:
        UsageError: if it is none of PNG, SVG and PDF.
    """
    if path.suffix.lower() not in FORMATS:
        named = path.name not in ("", "..")
        raise UsageError(
            "a plot is a PNG, SVG or PDF file",
            file=path,
            hint=("give ", Setting("plot", str(path.with_suffix(".png") if named else "plot.png"))),
        )
    return path.suffix.lower()


def plot(figures: Sequence[Figure], suffix: str) -> bytes:
    """Return figures below each other as a file; the same figures give the same bytes.

    Args:
        suffix: `.png`, `.svg` or `.pdf`.

    Raises:
        MissingExtra: if matplotlib is not installed.
        UsageError: if there are no figures.
    """
    require_matplotlib()
    if not figures:
        raise UsageError("this result has no figures to plot")
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        heights = [_height(one) for one in figures]
        canvas = Canvas(figsize=(_WIDTH, sum(heights)), layout="constrained")
        parts = canvas.subfigures(len(figures), 1, height_ratios=heights, squeeze=False)
        for part, figure in zip(parts[:, 0], figures, strict=True):
            _draw(part, figure)
        buffer = io.BytesIO()
        about: Any = _ABOUT[suffix]
        canvas.savefig(buffer, format=suffix[1:], dpi=_DOTS, metadata=about)
    return buffer.getvalue()


def _height(figure: Figure) -> float:
    """Return the inches that a figure takes."""
    if isinstance(figure, Bars):
        return 0.8 + 0.2 * len(figure.rows) * max(1, len(figure.series) * 0.6)
    if isinstance(figure, HeatMap):
        return 1.3 + 0.22 * len(figure.rows)
    if isinstance(figure, Panels):
        return 0.6 + 1.25 * math.ceil(len(figure.panels) / _ACROSS)
    return 3.4


def _draw(part: Any, figure: Figure) -> None:
    part.suptitle(_legible(figure.title), x=0.01, ha="left", fontsize=9, fontweight="bold")
    drawers: dict[type[Figure], Callable[[Any, Any], None]] = {
        Lines: _lines, Bars: _bars, HeatMap: _matrix, Panels: _panels,
    }  # fmt: skip
    drawers[type(figure)](part, figure)


def _lines(part: Any, figure: Lines) -> None:
    axes = part.subplots()
    places = accumulate((not line.faint for line in figure.lines), initial=0)
    for place, line in zip(places, figure.lines, strict=False):
        xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
        faint = {"color": "#9ca8b8", "linewidth": 0.8}
        style = {"color": _COLOURS[place % 4], "linestyle": _DASHES[place % 4]}
        marker = "o" if line.labels or len(xs) == 1 else None
        axes.plot(xs, ys, label=_legible(line.name), marker=marker, markersize=3,
                  **(faint if line.faint else style))  # fmt: skip
        for x, y, label in zip(xs, ys, line.labels, strict=False):
            axes.annotate(_legible(label), (x, y), (3, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(_legible(figure.across))
    axes.set_ylabel(_legible(figure.up))
    axes.xaxis.set_major_formatter(lambda value, _: figure.unit(value))
    if figure.from_zero and all(y >= 0 for line in figure.lines for _, y in line.points):
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#d8dee7", linewidth=0.6)
    if len(figure.lines) > 1:
        axes.legend(frameon=False)


def _bars(part: Any, figure: Bars) -> None:
    axes = part.subplots()
    count = max(1, len(figure.series))
    thick = 0.8 / count
    for place, name in enumerate(figure.series):
        values = [abs(row[place] or 0.0) for _, row in figure.rows]
        heights = [n + (place - (count - 1) / 2) * thick for n in range(len(values))]
        bars = axes.barh(
            heights, values, thick * 0.9, color=_COLOURS[place % 4], label=_legible(name)
        )
        texts = [figure.show(row[place]) for _, row in figure.rows]
        axes.bar_label(bars, texts, padding=2, fontsize=6)
    axes.set_yticks(range(len(figure.rows)), [_legible(name) for name, _ in figure.rows])
    axes.set_xlim(0, figure.longest * 1.1)
    axes.set_ylim(len(figure.rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    if count > 1:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=count)


def _matrix(part: Any, figure: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    axes = part.subplots()
    most = figure.strongest
    signed = any(value is not None and value < 0 for row in figure.values for value in row)
    ends = [_COLOURS[1], "#ffffff", _COLOURS[0]] if signed else ["#ffffff", _COLOURS[0]]
    colours = LinearSegmentedColormap.from_list("loramerge", ends).with_extremes(bad="#eef0f3")
    values = [[math.nan if value is None else value for value in row] for row in figure.values]
    image = axes.imshow(values, cmap=colours, vmin=-most if signed else 0, vmax=most, aspect="auto",
                        interpolation="nearest")  # fmt: skip
    axes.set_xticks(range(len(figure.columns)), [_legible(c) for c in figure.columns], rotation=90)
    axes.set_yticks(range(len(figure.rows)), [_legible(r) for r in figure.rows])
    axes.tick_params(length=0, labelsize=6)
    axes.spines[:].set_visible(False)
    if figure.numbers:
        for y, row in enumerate(figure.values):
            for x, value in enumerate(row):
                if value is not None:
                    ink = "white" if abs(value) > 0.75 * most else "black"
                    axes.text(x, y, figure.show(value), ha="center", va="center",
                              fontsize=5.5, color=ink)  # fmt: skip
    part.colorbar(image, ax=axes, shrink=0.8, aspect=30).ax.tick_params(labelsize=6)


def _panels(part: Any, figure: Panels) -> None:
    rows = math.ceil(len(figure.panels) / _ACROSS)
    grid = part.subplots(rows, _ACROSS, sharex=True, sharey=True, squeeze=False)
    _, low, high = panel_bounds(figure)
    for axes in grid.flat[len(figure.panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, figure.panels, strict=False):
        for place, (middle, least, most) in enumerate(panel.series):
            places = range(1, len(middle) + 1)
            colour = _COLOURS[place % 4]
            axes.fill_between(places, least, most, color=colour, alpha=0.2, linewidth=0)
            axes.plot(places, middle, color=colour, linestyle=_DASHES[place % 4], linewidth=1.2,
                      marker="o" if len(middle) == 1 else None, markersize=2,
                      label=_legible(figure.series[place]))  # fmt: skip
        axes.set_title(_legible(panel.name), fontsize=6)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.set_ylim(low, high * 1.3)
        axes.tick_params(labelsize=6)
    part.supxlabel(_legible(figure.across), fontsize=7)
    part.supylabel(_legible(figure.up), fontsize=7)
    if len(figure.series) > 1:
        grid[0, 0].legend(frameon=False, fontsize=6)


def _legible(text: str) -> str:
    r"""Return a text as a label: cut, and letters that the font lacks escaped (`\u` and a number)."""
    text = text if len(text) <= _LETTERS * 2 else f"{text[: _LETTERS * 2 - 1]}…"
    if text.isascii() and text.isprintable():
        return text
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    return "".join(
        one if one.isprintable() and font.get_char_index(ord(one)) else _escaped(one)
        for one in text
    )


def _escaped(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x80 else letter.encode("ascii", "backslashreplace").decode()

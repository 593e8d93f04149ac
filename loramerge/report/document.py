"""The content of a report: sections of facts, tables, findings and figures, without any drawing.

`page` makes HTML of a report and `plot` a picture file, so that both show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Bars",
    "FactList",
    "Figure",
    "HeatMap",
    "ImagePart",
    "Line",
    "Lines",
    "Notes",
    "Panel",
    "Panels",
    "Part",
    "Report",
    "Section",
    "Table",
    "facts",
    "number",
]  # fmt: skip


_ROWS = 100  # of the table of a figure of lines; of more places, every second, third, … is in it


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as people read it; a dash for None."""
    return "–" if value is None else f"{value + 0.0:.{digits}g}"


@dataclass(frozen=True)
class FactList:
    """Labels with their values."""

    rows: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.rows)


def facts(rows: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> FactList:
    """Return facts of labels and values; None and empty texts are left out."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    return FactList(tuple((label, str(v)) for label, v in pairs if v is not None and v != ""))


@dataclass(frozen=True)
class Table:
    """Rows below column names.

    Args:
        caption: name of the table.
        folded: whether the page shows it only after a click.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Notes:
    """Sentences, each with a severity: `error`, `warning`, `note`, or nothing."""

    lines: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True)
class ImagePart:
    """A PNG image.

    Args:
        about: its content in words.
    """

    data: bytes
    about: str

    def __bool__(self) -> bool:
        return self.data.startswith(b"\x89PNG\r\n")


@dataclass(frozen=True)
class Figure:
    """A picture of numbers.

    Args:
        title: a noun phrase.
        caption: how to read it, in a sentence or two.
    """

    title: str
    caption: str

    def table(self) -> Table:
        """Return its numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class Line:
    """A line of a figure.

    Args:
        points: (x, y), by x.
        labels: of the points, none or one for each.
        faint: whether it is the background of the others.
    """

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    faint: bool = False


@dataclass(frozen=True)
class Lines(Figure):
    """Lines over a common axis.

    Args:
        across, up: names of the axes.
        unit: function of a number of the axis across that gives its label.
        from_zero: whether the axis upwards begins at 0.
    """

    lines: Sequence[Line] = ()
    across: str = ""
    up: str = ""
    unit: Callable[[float], str] = field(default=number)
    from_zero: bool = True

    def __bool__(self) -> bool:
        return any(len(line.points) > 1 for line in self.lines)

    def table(self) -> Table:
        every = sorted({x for line in self.lines for x, _ in line.points})
        places = every[:: -(-len(every) // _ROWS)] if len(every) > _ROWS else every
        known = [dict(line.points) for line in self.lines]
        rows = [(self.unit(x), *(number(one.get(x), 4) for one in known)) for x in places]
        return Table(self.title, (self.across, *(line.name for line in self.lines)), rows, True)


@dataclass(frozen=True)
class Bars(Figure):
    """Bars: a row for each name, with a bar for each series.

    Args:
        series: names of the values of a row.
        rows: (name, values); None where there is none.
        most: value of the longest possible bar; None takes the largest.
        show: function that gives the text of a value.
    """

    series: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[float | None]]] = ()
    most: float | None = None
    show: Callable[[float | None], str] = field(default=number)

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def longest(self) -> float:
        """Value of a bar of full length, above 0."""
        values = [abs(value) for _, row in self.rows for value in row if value is not None]
        return self.most or max(values, default=0.0) or 1.0

    def table(self) -> Table:
        rows = [(name, *map(self.show, values)) for name, values in self.rows]
        return Table(self.title, ("", *self.series), rows)


@dataclass(frozen=True)
class HeatMap(Figure):
    """A table of numbers with coloured cells.

    Args:
        values: rows of numbers; None where there is none.
        most: number with the strongest colour; None takes the largest.
        decimals: of every number; None shows two digits of each.
        numbers: whether cells are large enough to show their numbers.
    """

    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    values: Sequence[Sequence[float | None]] = ()
    most: float | None = None
    decimals: int | None = None
    numbers: bool = True

    def __bool__(self) -> bool:
        return bool(self.values)

    def show(self, value: float | None) -> str:
        """Return the text of a cell."""
        if value is None or self.decimals is None:
            return number(value, 2)
        return f"{value:z.{self.decimals}f}"

    @property
    def strongest(self) -> float:
        """Number of the strongest colour, above 0."""
        values = [abs(value) for row in self.values for value in row if value is not None]
        return self.most or max(values, default=0.0) or 1.0

    def table(self) -> Table:
        cells = [[self.show(value) for value in row] for row in self.values]
        rows = [(name, *row) for name, row in zip(self.rows, cells, strict=True)]
        return Table(self.title, ("", *self.columns), rows)


@dataclass(frozen=True)
class Panel:
    """A small figure among others: a middle line within a band, for each series.

    Args:
        series: (middle, low, high) of each series, lists of one length, over 1, 2, 3, …; above 0.
    """

    name: str
    series: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Panels(Figure):
    """Small figures with common axes, the one upwards logarithmic."""

    panels: Sequence[Panel] = ()
    series: Sequence[str] = ()
    across: str = ""
    up: str = ""

    def __bool__(self) -> bool:
        return bool(self.panels)

    def table(self) -> Table:
        several = len(self.series) > 1
        rows = [
            (panel.name, *([name] if several else []), str(len(middle)), *_ends(middle))
            for panel in self.panels
            for name, (middle, _, _) in zip(self.series, panel.series, strict=True)
            if middle
        ]
        head = ("block", *(["adapter"] if several else []), "values", "first", "middle", "last")
        return Table(f"{self.title}, medians", head, rows, True)


def _ends(values: Sequence[float]) -> tuple[str, str, str]:
    return number(values[0]), number(values[len(values) // 2]), number(values[-1])


Part = FactList | Table | Notes | ImagePart | Figure


@dataclass(frozen=True)
class Section:
    """Parts below a heading; empty parts are not shown."""

    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Report:
    """A report.

    Args:
        lead: a sentence with the verdict, below the title.
    """

    title: str
    lead: str = ""
    sections: Sequence[Section] = ()

    def shown(self) -> list[Section]:
        """Return the sections with their parts that are not empty."""
        found = [Section(one.heading, [p for p in one.parts if p]) for one in self.sections]
        return [one for one in found if one.parts]

    def figures(self) -> list[Figure]:
        """Return the figures, in order."""
        return [p for one in self.shown() for p in one.parts if isinstance(p, Figure)]

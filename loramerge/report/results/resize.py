"""The report of `resize`: what each file lost and where, or the curve of one."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from loramerge.errors import sized
from loramerge.report.blocks import heat_maps, measured
from loramerge.report.document import Line, Lines, Notes, Part, Report, Section, Table, number
from loramerge.report.results.inspect import shape_figures
from loramerge.report.results.mix import accuracy, result_facts

__all__ = ["curve", "report"]

_FILES = 20  # whose errors are shown by block and layer


def report(result: Any) -> Report:
    """Return the report of a `CurveResult`, a `ResizeResult`, or a `FilesResult` of several."""
    if hasattr(result, "uniform"):
        return _of_curve(result)
    if not hasattr(result, "files"):
        return _of_one(result)
    done = [one for one in result.files if one.result is not None]
    if len(result.files) == len(done) == 1:
        return _of_one(done[0].result)
    sections = [
        Section(PurePath(one.output or one.path).name, _figures(one.result, brief=True))
        for one in done[:_FILES]
    ]
    return Report(
        f"{len(result.files)} files resized",
        "",
        [Section("Files", [_table(result.files), _curve_of(done)]), *sections],
    )


def _of_one(result: Any) -> Report:
    title = PurePath(result.output or result.path).name
    before = ", ".join(f"{rank} ×{n}" for rank, n in result.ranks_before.items())
    sizes = None if result.size_before is None else sized(result.size_before)
    return Report(
        title,
        f"{PurePath(result.path).name} at lower ranks: {accuracy(result)}.",
        [
            Section(
                "Result", [result_facts(result, {"rank before": before, "size before": sizes})]
            ),
            Section("Weights of the result", _figures(result)),
        ],
    )


def _figures(result: Any, *, brief: bool = False) -> list[Part]:
    errors = dict(result.errors)
    maps = heat_maps(
        errors if any(errors.values()) else {},
        "Error by block and layer",
        "Relative error of a module: the norm of what was cut over that of its change. The largest, "
        "where a cell has several modules.",
        together=max,
        most=max([0.0, *errors.values()]) or None,
    )
    if brief or result.adapter is None:
        return list(maps)
    return [*maps, *shape_figures({"": measured(result.adapter)})]


def _table(files: Any) -> Table:
    rows = [
        (
            PurePath(one.output or one.path).name,
            one.status,
            "–" if one.size_before is None else sized(one.size_before),
            sized(one.result.size) if one.result is not None and one.result.size else "–",
            f"{100 * one.result.norm_kept:.4g} %" if one.result is not None else "–",
            number(one.result.relative_error, 4) if one.result is not None else "–",
            one.reason or "",
        )
        for one in files
    ]
    columns = (
        "file",
        "status",
        "size before",
        "size after",
        "norm kept",
        "relative error",
        "reason",
    )
    shown = len(columns) - (not any(row[-1] for row in rows))  # reasons are of files that failed
    return Table("Files", columns[:shown], [row[:shown] for row in rows])


def _curve_of(done: Any) -> Part:
    """Return the errors over the sizes of several results of one file."""
    points = sorted(
        (float(one.result.size), one.result.relative_error) for one in done if one.result.size
    )
    if len({one.path for one in done}) != 1 or len(points) < 2:
        return Notes(())
    name = PurePath(done[0].path).name
    return _lines([Line(name, points, [sized(int(size)) for size, _ in points])])


def _of_curve(result: Any) -> Report:
    name = PurePath(result.path).name
    rows = [tuple(row) for row in result.table_rows()]
    before = f", {sized(result.size_before)}" if result.size_before else ""
    return Report(
        f"{name} at other ranks",
        f"{result.modules} modules{before}.",
        [
            Section("Curve", [curve(result)]),
            Section("Figures", [Table("Errors at ranks and sizes", rows[0], rows[1:])]),
        ],
    )


def curve(result: Any) -> Lines:
    """Return the figure of a `CurveResult`."""
    best = sorted(result.best, key=lambda point: point.size)
    return _lines(
        [
            Line(
                "one rank for all modules",
                [(point.size, point.relative_error) for point in result.uniform],
                [f"r{point.rank}" for point in result.uniform],
            ),
            Line("best ranks for the size", [(p.size, p.relative_error) for p in best]),
        ]
    )


def _lines(lines: list[Line]) -> Lines:
    return Lines(
        "Error over size",
        "Lower is better. Relative error: the norm of what is cut over that of the whole change.",
        lines=lines,
        across="size of the file",
        up="relative error",
        unit=lambda size: sized(round(size)),
    )

"""Reports of results, found by the name of their verb, and the files that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loramerge.errors import Setting

if TYPE_CHECKING:
    from loramerge.report.document import Report

__all__ = ["check_views", "has_report", "report_of", "view_of", "write_views"]

_FOLDER = Path(__file__).parent / "results"
_MARK = b"loramerge"  # near the start of every page and plot


def has_report(verb: str) -> bool:
    """Return whether this package has a report of a verb's results; nothing is imported."""
    return verb.isidentifier() and (_FOLDER / f"{verb}.py").is_file()


def report_of(verb: str, result: Any) -> Report:
    """Return the report of a result of a verb that has one."""
    module = import_module(f"loramerge.report.results.{verb}")
    return cast("Callable[[Any], Report]", module.report)(result)


def check_views(files: Mapping[str, str | None], others: Iterable[str]) -> None:
    """Refuse files that cannot be made, or would replace anything but such a file, before any work.

    Args:
        files: `html` or `plot` → path, None if it is not wanted.
        others: paths of outputs and inputs.

    Raises:
        MissingExtra: if a library is not installed.
        UsageError: for a plot of another format.
        OutputExists: naming the path.
    """
    from loramerge.files.reports import check_apart, check_report
    from loramerge.report.page import require_jinja
    from loramerge.report.plot import check_format, require_matplotlib

    given = {option: path for option, path in files.items() if path is not None}
    others = list(others)
    for option, path in given.items():
        if option == "plot":
            check_format(Path(path))
            require_matplotlib()
        else:
            require_jinja()
        beside = [other for another, other in given.items() if another != option]
        check_apart(path, Setting(option), [*others, *beside])
        sort = "a plot of loramerge" if option == "plot" else "a page of loramerge"
        check_report(path, sort, lambda head: _MARK in head, Setting(option))


def view_of(report: Report, path: Path) -> bytes:
    """Return the file of a report: a page for a name that ends in `.html`, else a plot.

    Raises:
        UsageError: for a name of another ending, or a plot of a report without figures.
        MissingExtra: if a library is not installed.
    """
    from loramerge.report.page import page
    from loramerge.report.plot import check_format, plot

    if path.suffix.lower() == ".html":
        return page(report)
    return plot(report.figures(), check_format(path))


def write_views(report: Report, files: Mapping[str, str | None]) -> list[str]:
    """Write the page and the plot of a report, and return their paths.

    Args:
        files: `html` or `plot` → path, None if it is not wanted.

    Raises:
        UsageError: if a plot is wanted and there are no figures.
    """
    from loramerge.files.reports import write_report
    from loramerge.report.page import page

    made = {
        path: page(report) if option == "html" else view_of(report, Path(path))
        for option, path in files.items()
        if path is not None
    }
    for path, data in made.items():
        write_report(path, data)
    return list(made)

"""Results as shown to people: one line, or a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar

from loramerge.errors import UsageError

__all__ = ["Shown"]

_MOST = 12  # entries of a list that are shown


class Shown:
    """A result with a short `repr`, and a table of its `json()` for notebooks.

    A class that is one names the attributes of its line in `headline`; dataclasses set `repr=False`.
    """

    headline: ClassVar[tuple[str, ...]] = ()
    reported_as: ClassVar[str] = ""  # verb whose report shows it, see `report.results`

    def json(self) -> Any:
        """Return the object that `--json` prints."""
        raise NotImplementedError

    def table_rows(self) -> Iterable[Iterable[str]]:
        """Return the rows of the table: names and values."""
        return [
            (str(name).replace("_", " "), said)
            for name, value in self.json().items()
            if (said := _said(value))
        ]

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write it as an HTML page, or its figures as a PNG, SVG or PDF file, by the name's ending.

        Raises:
            UsageError: for another ending, or for a result without a report or figures.
            OutputExists: unless `force`.
            MissingExtra: if a library is not installed.
        """
        from loramerge.files.atomic import check_target
        from loramerge.files.writer import write_bytes
        from loramerge.report.views import report_of, view_of

        if not self.reported_as:
            raise UsageError(f"there is no report of a {type(self).__name__}")
        place = check_target(path, force=force)
        report = report_of(self.reported_as, self)
        write_bytes(place, view_of(report, place), force=force)

    def __repr__(self) -> str:
        known = ((name, getattr(self, name)) for name in self.headline)
        parts = [f"{name}={_short(value)}" for name, value in known if value is not None]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        from loramerge.adapter.shown import table

        return table(self.table_rows())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _said(value: object) -> str:
    """Return a value in a few words; nothing for one that is absent or empty."""
    if value is None or value == [] or value == {} or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _listed([f"{name}: {_said(one) or '-'}" for name, one in value.items()])
    if isinstance(value, (list, tuple)):
        return _listed([_said(one) for one in value])
    return str(value)


def _listed(parts: list[str]) -> str:
    more = f", … and {len(parts) - _MOST} more" if len(parts) > _MOST else ""
    return ", ".join(parts[:_MOST]) + more

"""Tables of results as CSV: the one place that writes them.

Spreadsheets run a cell as a formula if it begins with `=`, `+`, `-` or `@`, or with a tab or a line's
end before it. Names of files and words of their headers come from strangers, so such text gets an
apostrophe in front, which spreadsheets read as "this is text" (OWASP, CSV Injection). Numbers stay
numbers, negative ones too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from loramerge.errors import Setting
from loramerge.files.reports import check_report, write_report

__all__ = ["check_table", "write_table"]

_FORMULA = re.compile("[=+\\-@\t\r\n＝＋－＠]")  # the wide ones count in East Asian versions
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def check_table(
    path: Path,
    option: Setting = Setting("results"),
    is_one: Callable[[bytes], bool] = lambda head: head.startswith(b"file,"),
) -> None:
    """Refuse to write a table over something else; see `check_report`.

    Args:
        is_one: tells from its start whether an existing file is such a table.

    Raises:
        OutputExists: if the path is a folder, or a file that is not such a table.
    """
    check_report(path, "a table of results", is_one, option)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV; an older one is replaced, and no text in it is a formula."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows(map(_cell, row) for row in rows)
    write_report(path, text.getvalue().encode("utf-8", "replace"))


def _cell(value: Any) -> Any:
    """Return a value as a cell that no spreadsheet runs.

    A carriage return becomes a new line: the csv module would not quote it, and it would begin a row.
    """
    if isinstance(value, (int, float)) or value is None:
        return value
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text

"""Commands of verbs on several files: one file in lines, several as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from loramerge.cli import show
from loramerge.cli.options import Render, verb_command
from loramerge.steps.batch import FileOutcome

__all__ = ["files_command", "files_render"]


def files_render(
    one: Callable[[Any], None],
    columns: Sequence[str],
    cells: Callable[[Any, FileOutcome[Any]], Sequence[str]],
) -> Render:
    """Return what shows one file in lines, several as a table.

    Args:
        one: shows what became of a single file.
        columns: of the table of several, between the status and why one failed.
        cells: gives them from the result of a file.
    """

    def row(file: FileOutcome[Any]) -> tuple[str, ...]:
        found = [""] * len(columns) if file.result is None else cells(file.result, file)
        return Path(file.path).name, file.status, *found, file.reason or ""

    def render(result: Any) -> None:
        if len(result.files) == 1 and result.files[0].status == "done":
            one(result.files[0].result)
            return
        show.table(map(row, result.files), ("file", "status", *columns, "why"))
        counts = Counter(file.status for file in result.files)
        show.console().print(", ".join(f"{n} {status}" for status, n in counts.items()))

    return render


def files_command(
    name: str, parameters: type[Any], run: str, render: Render, example: str
) -> click.Command:
    """Make the command of a verb that does the same to each of several files; see `verb_command`."""
    return verb_command(
        name,
        parameters,
        run,
        render,
        example,
        lambda result: result.exit_code,
        decomposes=True,
        writes=True,
        steps=lambda asked, result: [
            (name, asked.of(Path(file.path)), file.result)
            for file in result.files
            if file.status == "done"
        ],
    )

"""Results of verbs on several files: one file in lines, several as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loramerge.cli import show
from loramerge.cli.show import Render
from loramerge.errors import listed
from loramerge.steps.batch_result import FileOutcome, FilesResult

__all__ = ["files_render", "show_left_out"]

_NAMED = 4  # of the files that were left out


def files_render(
    one: Callable[[Any], None],
    columns: Sequence[str],
    cells: Callable[[Any, FileOutcome[Any]], Sequence[str]],
) -> Render:
    """Return a renderer that shows one file in lines, several as a table.

    Args:
        one: shows what became of a single file.
        columns: of the table of several, between the status and why one failed.
        cells: gives them from the result of a file.
    """

    def row(file: FileOutcome[Any], outputs: bool) -> tuple[str, ...]:
        found = [""] * len(columns) if file.result is None else cells(file.result, file)
        name = Path(file.output if outputs and file.output else file.path).name
        return name, file.status, *found, file.reason or ""

    def render(result: Any) -> None:
        if not isinstance(result, FilesResult):  # a step of a recipe takes one adapter
            one(result)
            return
        if len(result.files) == 1 and result.files[0].status == "done":
            one(result.files[0].result)
            show_left_out(result.not_adapters)
            return
        # several results of a file are told apart by their own names
        outputs = len({file.path for file in result.files}) < len(result.files)
        show.table(
            (row(file, outputs) for file in result.files), ("file", "status", *columns, "reason")
        )
        counts = Counter(file.status for file in result.files)
        show.line(", ".join(f"{n} {status}" for status, n in counts.items()))
        show_left_out(result.not_adapters)

    return render


def show_left_out(paths: Sequence[str]) -> None:
    """Show what else the folders hold."""
    if not paths:
        return
    counts = Counter("folder" if Path(path).is_dir() else "file" for path in paths)
    things = " and ".join(show.count(n, word) for word, n in sorted(counts.items()))
    are = "is not an adapter and was" if len(paths) == 1 else "are not adapters and were"
    names = listed([Path(path).name for path in paths], _NAMED)
    show.line(f"{things} {are} left out: {names}")

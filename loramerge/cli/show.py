"""Pieces that the renderings of results share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loramerge.errors import sized

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "counted", "errors", "percent", "ranks", "result", "size", "table", "written"]

_PIPED_WIDTH = 100_000  # lines are for programs there, and never broken


def console() -> Console:
    """Return a console on standard output; where that is no terminal, plain and without a width."""
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, emoji=False
    )


def table(
    rows: Iterable[Sequence[Any]], columns: Sequence[str] = (), title: str | None = None
) -> None:
    """Print rows as a table; without columns, as pairs of a label and a value."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=title,
        title_justify="left",
        show_header=bool(columns),
        box=None if not columns else _box(),
        pad_edge=False,
    )
    rows = [[Text("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not rows:
        return
    for index in range(len(rows[0])):
        name = columns[index] if columns else ""
        shown.add_column(name, style="bold" if index == 0 and not columns else "", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out = console()
    if out.is_terminal:
        out.print(shown)
        return
    with out.capture() as captured:
        out.print(shown)
    for line in captured.get().splitlines():
        out.file.write(line.rstrip() + "\n")


def result(found: Any) -> None:
    """Show any result of a verb: the figures that `--json` prints, lists and tables left out."""
    content = found.json()
    rows = [("written", path) for path in content.get("outputs", ())]
    rows += [
        (name.replace("_", " "), str(value))
        for name, value in content.items()
        if isinstance(value, (str, int, float))
    ]
    table(rows)


def _box() -> Any:
    from rich import box

    return box.SIMPLE


def written(output: str | None, weighs: str) -> list[tuple[str, str]]:
    """Return the lines that say where a result is."""
    if output is None:
        return [("written", "nothing: later steps of the recipe take it from memory")]
    return [("written", output), ("size", weighs)]


def size(count: int | None) -> str:
    """Return bytes as people read them; MB = 10⁶."""
    return "?" if count is None else sized(count)


def percent(share: float) -> str:
    """Return a share as a percentage with as many digits as it deserves."""
    if 0.9995 <= share < 1.0:
        return f"{100 * share:.4f} %"
    return f"{100 * share:.4g} %"


def counted(counts: Mapping[Any, int], unit: str = "") -> str:
    """Return `a ×3, b ×1`; a single entry without its count."""
    if not counts:
        return "none"
    if len(counts) == 1:
        return f"{next(iter(counts))}{unit}"
    parts = [f"{name}{unit} ×{n}" for name, n in list(counts.items())[:12]]
    more = len(counts) - 12
    return ", ".join(parts) + (f", … {more} more" if more > 0 else "")


def ranks(counts: Mapping[int, int]) -> str:
    """Return ranks with counts, or a range where there are many."""
    if len(counts) > 8:
        total = sum(counts.values())
        mean = sum(rank * n for rank, n in counts.items()) / total
        return f"{min(counts)} to {max(counts)}, {mean:.1f} on average"
    return counted(counts)


def errors(
    lossy: bool, relative_error: float, norm_kept: float, worst: tuple[str, float] | None
) -> list[tuple[str, str]]:
    """Return the lines that say what was lost."""
    if not lossy:
        return [("lost", "nothing: the result is exact before rounding to its type")]
    lines = [
        ("lost", f"relative error {relative_error:.4g}, norm kept {percent(norm_kept)}"),
    ]
    if worst is not None:
        lines.append(("worst", f"{worst[0]}: relative error {worst[1]:.4g}"))
    return lines

"""The command `resize`: lower the ranks of adapters by SVD."""

from __future__ import annotations

from typing import Any

from loramerge.cli import show
from loramerge.cli.bars import BarColumn
from loramerge.cli.command import verb_command
from loramerge.cli.files import files_render
from loramerge.cli.layout import shortened
from loramerge.steps.batch_result import FileOutcome
from loramerge.verbs.resize import VERB, CurveResult, ResizeResult

_NAME = 40  # characters of a name of a module in the table of several files


def _cells(found: ResizeResult, file: FileOutcome[ResizeResult]) -> tuple[str, ...]:
    return (
        f"{show.size(file.size_before)} to {show.size(found.size)}" if found.size else "",
        show.percent(found.norm_kept),
        f"{found.worst[1]:.3g} ({shortened(found.worst[0], _NAME)})" if found.worst else "",
    )


def render_one(found: ResizeResult) -> None:
    """Show the result for one adapter."""
    before = "" if found.size_before is None else f"{show.size(found.size_before)} to "
    lines = show.written(found.output, before + show.size(found.size))
    if found.output is not None:
        lines.append(("format", f"{found.dialect}, {found.dtype}"))
    exact = "no rank was lowered"
    lines += [
        ("rank", f"{show.ranks(found.ranks)} (was {show.ranks(found.ranks_before)})"),
        *show.errors(found.lossy, found.relative_error, found.norm_kept, found.worst, exact),
    ]
    lines += [
        (
            "ingredient",
            f"{one['adapter']} {show.at(one['weight'])}: relative error {one['relative_error']:.4g}",
        )
        for one in found.ingredients
    ]
    if found.error_at_base is not None:
        lines.append(("relative to base", f"relative error {found.error_at_base:.4g}"))
    if found.left_out:
        lines.append(("removed", f"{show.count(len(found.left_out), 'module')} of rank 0"))
    show.table(lines)


def render_curve(found: CurveResult) -> None:
    """Show the curve of an adapter as a table."""
    columns, *rows = found.table_rows()
    errors = [(even or best).relative_error for even, best in found.pairs()]
    show.table(rows, columns, drawn=BarColumn("", errors))


_render_files = files_render(render_one, ("size", "norm kept", "largest relative error"), _cells)


def render(found: Any) -> None:
    """Show results of one file, of several, or a curve."""
    if isinstance(found, CurveResult):
        render_curve(found)
    else:
        _render_files(found)


command = verb_command(VERB, render, "loramerge resize --rank 8 character.safetensors")
